"""Fine-tuning the demo's base against training it from nothing, and DreamBooth with and without prior preservation.

    python -m benchmarks.finetuning runs/demo [--seeds 0 1 2] [--steps 2400] [--part colour] [--rows FILE]

Part ``colour``: scenes of which half show purple, a colour that the demo's model has never seen. `steps` updates from
nothing, a fifth of them from nothing, and the same fifth from the demo's weights: all of them, and LoRA of rank 4 and
16. Part ``subject``: five images of a striped purple square, as "a zwx square in the centre", with images of squares by
the model itself beside them, a quarter by prompts without a colour, and without such. The base is trained, at 16
pixels; the demo's own sr64 enlarges what it samples, and the checker of the scenes judges the 64 pixels: prompts of
what is new, and of what the model knew.

With ``--rows`` each finished training is added to a file, and one that is there already is not repeated: seeds and
parts may run one by one, and the last call writes the result of them all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from benchmarks.result import make_claim, write_result
from benchmarks.training_data import write_training_data
from dataprep.synthetic.grammar import (
    WIDE_PALETTE,
    Claim,
    ObjectGroup,
    recolour_claim,
    render_caption,
    sample_claim,
)
from dataprep.synthetic.renderer import draw_scene
from dataprep.synthetic.subject import SUBJECT, SUBJECT_IMAGES, draw_subject
from dataprep.text.encoder import TextEncoder
from eval.metrics.composition import check_image, find_shapes
from eval.sampling.cascade import Cascade
from eval.sampling.config import CascadeConfig, SamplingConfig, StageEntry
from eval.sampling.options import SamplingOptions
from pipeline.stages.train import TrainStageConfig
from pipeline.stages.trained_cascade import find_cascade
from pipeline.store.run import Run
from train.tasks.diffusion import train_diffusion
from train.tasks.diffusion_config import DiffusionTrainingConfig

SAMPLING = SamplingConfig(guidance=1.5, steps=16)
LARGE = "sr64"  # the demo's stage whose images are judged
WORD = "zwx"  # which means nothing yet
CLASS_IMAGES = 96
# Prompts of the class without a colour: a quarter of the class images, and what shows whether the class became the
# subject.
BARE, BARE_IMAGES = ("a square", "a large square", "a square on the left", "a small square at the top"), 8
# Of tuning, as in the configs of fine-tuning; from nothing the demo's own optimizer and rate are taken.
TUNING: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 5e-4}
LORA: dict[str, Any] = TUNING | {"learning_rate": 2e-3, "weight_decay": 0.0}
SUBJECT_RATE = 1e-3
Prompts = Sequence[tuple[str, Claim]]
Example = tuple[np.ndarray, str]  # uint8 RGB image, caption
Row = dict[str, Any]


class Rows:
    """The measured rows, kept in a file where one is given."""

    def __init__(self, path: str | None) -> None:
        self.path = Path(path) if path else None
        lines = self.path.read_text().splitlines() if self.path and self.path.exists() else []
        self.rows: list[Row] = [json.loads(line) for line in lines]

    def measure(self, part: str, method: str, seed: int, work: Callable[[], Row]) -> None:
        """Adds what ``work`` measures of a method, with its CPU-seconds, unless it is there."""
        known = {"part": part, "method": method, "seed": seed}
        if any(known.items() <= row.items() for row in self.rows):
            return
        began = time.process_time()
        self.rows.append(known | work() | {"cpu_seconds": round(time.process_time() - began, 1)})
        print(json.dumps(self.rows[-1]), flush=True)
        if self.path:
            with self.path.open("a") as file:
                file.write(json.dumps(self.rows[-1]) + "\n")


class Bench:
    """The demo's base and encoder, and where files go."""

    def __init__(self, demo: str, scratch: str) -> None:
        run = Run(demo)
        artifact = run.artifacts()["train.base"]
        self.config = TrainStageConfig.from_manifest(artifact.manifest).train
        self.base, self.scratch, self.count = artifact.path("export"), Path(scratch), 0
        self.cascade = find_cascade(demo, "DEMO")
        self.size = self.config.resolution
        self.encoder = TextEncoder.from_folder(self.cascade.encoder, max_length=self.cascade.max_length)

    def write_data(self, examples: Sequence[Example]) -> str:
        """Packs images and embeds captions; returns the path of their index."""
        pixels = [cv2.resize(image, (self.size, self.size), interpolation=cv2.INTER_AREA) for image, _ in examples]
        return write_training_data(self._new_folder("data"), pixels, [text for _, text in examples], self.encoder)

    def train(self, index: str, steps: int, seed: int, **changes: Any) -> Path:
        """Trains the base; returns its folder."""
        folder = self._new_folder("train")
        own = self.config.model_dump(mode="json") | {"preset": None, "init": None, "adapter": None, "zero_stage": 0}
        own |= {"steps": steps, "warmup_steps": max(1, steps // 20), "ema_decay": max(0.5, 1 - 10 / steps)}
        own |= {"half_size_steps": 0}  # tuning begins with a network that knows its size
        own |= {"checkpoint_every": steps, "validate_every": 0, "sample_every": 0, "log_every": max(1, steps // 10)}
        config = DiffusionTrainingConfig.model_validate(own | changes, strict=False)
        train_diffusion(index, False, config, str(folder), seed)
        return folder / "export"

    def open(self, base: str | Path) -> Cascade:
        """Returns a cascade of this base and the demo's `LARGE`."""
        base_entry = StageEntry(name="base", resolution=self.size, path=str(base), sampling=SAMPLING)
        stages = [base_entry, next(entry for entry in self.cascade.stages if entry.name == LARGE)]
        update = {
            "stages": [entry.model_dump() for entry in stages],
            "clip": None,
            "clip_pretrained": None,
            "watermark": None,
        }
        return Cascade.from_config(CascadeConfig.model_validate(self.cascade.model_dump() | update, strict=False))

    def sample(self, base: str | Path, prompts: Sequence[str], seed: int, num: int = 1) -> list[np.ndarray]:
        """Returns ``num`` images per prompt."""
        options = SamplingOptions(seed=seed, num=num)
        images: list[Image.Image] = self.open(base).sample(list(prompts), options).images
        return [np.asarray(image) for image in images]

    def _new_folder(self, kind: str) -> Path:
        self.count += 1
        folder = self.scratch / f"{kind}-{self.count}"
        folder.mkdir()
        return folder


def judge(images: Sequence[np.ndarray], prompts: Prompts) -> float:
    """Returns the share of images that show all that their claims state, of five colours."""
    pairs = zip(images, prompts, strict=True)
    return float(np.mean([check_image(image, claim, WIDE_PALETTE)["all"] for image, (_, claim) in pairs]))


def make_prompts(count: int, seed: int, purple: bool) -> list[tuple[str, Claim]]:
    """Returns English prompts of claims, with a purple group or of the corpus."""
    rng = np.random.default_rng([seed, 900 + purple])
    claims = [sample_claim(rng) for _ in range(count)]
    claims = [recolour_claim(claim, rng) for claim in claims] if purple else claims
    return [(render_caption(claim), claim) for claim in claims]


def draw_scenes(count: int, seed: int) -> Iterator[Example]:
    """Yields scenes with captions, half of them with a purple group."""
    for index in range(count):
        rng = np.random.default_rng([seed, 700, index])
        claim = sample_claim(rng, related=0.4)
        claim = recolour_claim(claim, rng) if index % 2 else claim
        yield draw_scene(claim, rng, 64), render_caption(claim)


# ---------------------------------------------------------------------------------------------- a new colour


def measure_colour(bench: Bench, rows: Rows, seed: int, steps: int, images: int, prompts: int) -> None:
    """Adds the accuracy of every method on new and old prompts."""
    index, few = bench.write_data(list(draw_scenes(images, seed))), max(1, steps // 5)
    new, old = make_prompts(prompts, seed, True), make_prompts(prompts, seed, False)
    init = {"source": bench.base}
    methods: dict[str, tuple[int, dict[str, Any]]] = {
        "from nothing": (steps, {}),
        "from nothing, a fifth": (few, {}),
        "full tuning": (few, TUNING | {"init": init}),
        "LoRA, rank 4": (few, LORA | {"init": init, "adapter": {"rank": 4}}),
        "LoRA, rank 16": (few, LORA | {"init": init, "adapter": {"rank": 16}}),
    }

    def train(updates: int, changes: dict[str, Any]) -> Row:
        return describe(bench, bench.train(index, updates, seed, **changes), updates, seed, new, old)

    rows.measure("colour", "the demo's model", seed, lambda: describe(bench, bench.base, 0, seed, new, old))
    for name, (updates, changes) in methods.items():
        rows.measure("colour", name, seed, partial(train, updates, changes))


def describe(bench: Bench, base: str | Path, steps: int, seed: int, new: Prompts, old: Prompts) -> Row:
    """Returns the accuracy on new and old prompts."""
    found = {
        key: judge(bench.sample(base, [text for text, _ in prompts], seed), prompts)
        for key, prompts in {"new": new, "old": old}.items()
    }
    return {"steps": steps, **found}


# ---------------------------------------------------------------------------------------------- a subject


def measure_subject(bench: Bench, rows: Rows, seed: int, steps: int, prompts: int) -> None:
    """Adds what DreamBooth learned and forgot, with the class images and without."""
    rng = np.random.default_rng([seed, 800])
    squares = [sample_square(rng) for _ in range(2 * prompts)]
    kept, judged = squares[prompts:], squares[:prompts]
    # The place that all images share is named, so that it does not become part of the word.
    subject = [(draw_subject(number, 64), f"a {WORD} square in the centre") for number in range(SUBJECT_IMAGES)]
    texts = [render_caption(kept[number % len(kept)]) for number in range(CLASS_IMAGES)]
    texts[::4] = [BARE[number % len(BARE)] for number in range(len(texts[::4]))]
    changes = TUNING | {"init": {"source": bench.base}, "learning_rate": SUBJECT_RATE, "batch_size": 16}

    def train(with_class: bool) -> Row:
        examples = list(subject)
        if with_class:
            own = zip(bench.sample(bench.base, texts, seed + 1), texts, strict=True)
            examples = [*subject * (CLASS_IMAGES // SUBJECT_IMAGES), *own]
        return describe_subject(bench, bench.train(bench.write_data(examples), steps, seed, **changes), seed, judged)

    rows.measure("subject", "the demo's model", seed, lambda: describe_subject(bench, bench.base, seed, judged))
    rows.measure("subject", "with class images", seed, lambda: train(True))
    rows.measure("subject", "without", seed, lambda: train(False))


def sample_square(rng: np.random.Generator) -> Claim:
    """Returns a claim of one square with a position, of a colour that squares have in the corpus."""
    colour = ("red", "green", "blue")[int(rng.integers(3))]
    position = ("left", "right", "top", "bottom", "centre")[int(rng.integers(5))]
    size = ("small", "large")[int(rng.integers(2))]
    group = ObjectGroup.model_validate({"colour": colour, "shape": "square", "size": size})
    return Claim.model_validate({"first": group, "position": position})


def describe_subject(bench: Bench, base: str | Path, seed: int, squares: Sequence[Claim]) -> Row:
    """Returns shares of right images: the subject as trained, in new places, beside others; and other squares."""
    places = {"left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom"}
    anywhere = SUBJECT.model_copy(update={"size": None})
    alone = [(f"a {WORD} square", Claim(first=SUBJECT))]
    moved = [
        (f"a {WORD} square {words}", Claim.model_validate({"first": anywhere, "position": place}))
        for place, words in places.items()
    ]
    others = [
        ObjectGroup.model_validate({"colour": colour, "shape": shape, "size": "small"})
        for colour, shape in (("red", "circle"), ("blue", "triangle"))
    ]
    beside = [
        (
            f"a {WORD} square {relation} a small {other.colour} {other.shape}",
            Claim.model_validate({"first": anywhere, "second": other, "relation": relation}),
        )
        for relation in ("left of", "right of", "above", "below")
        for other in others
    ]
    found = {
        key: judge(bench.sample(base, [text for text, _ in group], seed, num), repeat(group, num))
        for key, group, num in (("alone", alone, 16), ("new place", moved, 8), ("beside", beside, 4))
    }
    prompts = [(render_caption(claim), claim) for claim in squares]
    images = bench.sample(base, [text for text, _ in prompts], seed)
    bare = bench.sample(base, list(BARE), seed, BARE_IMAGES)
    collapsed = {
        name: float(np.mean([is_subject(image) for image in part]))
        for name, part in (("class collapsed", images), ("bare class collapsed", bare))
    }
    return {**found, "class": judge(images, prompts), **collapsed}


def repeat(prompts: Prompts, num: int) -> list[tuple[str, Claim]]:
    """Returns each prompt ``num`` times, in the order of its images."""
    return [prompt for prompt in prompts for _ in range(num)]


def is_subject(image: np.ndarray) -> bool:
    """Returns whether an image shows an object of the subject's colour."""
    return any(shape.colour == SUBJECT.colour for shape in find_shapes(image, WIDE_PALETTE))


# ---------------------------------------------------------------------------------------------- all


def average(rows: Sequence[Mapping[str, Any]], method: str, key: str) -> float:
    """Returns the mean of a method over the seeds."""
    return float(np.mean([row[key] for row in rows if row["method"] == method]))


def make_claims(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims of the parts that were measured."""
    colour, subject = ([row for row in rows if row["part"] == part] for part in ("colour", "subject"))
    claims = []
    if colour:
        target = average(colour, "from nothing", "new")
        for method in ("full tuning", "LoRA, rank 4", "LoRA, rank 16"):
            text = f"{method}, a fifth of the updates: accuracy on the new colour over that of all updates from nothing"
            claims.append(make_claim(text, average(colour, method, "new") / max(target, 1e-9), "ratio", 1.0))
        known = average(colour, "the demo's model", "old")
        for method in ("full tuning", "LoRA, rank 4", "LoRA, rank 16"):
            text = f"{method}: accuracy on the old colours over that before"
            claims.append(make_claim(text, average(colour, method, "old") / max(known, 1e-9), "ratio", 0.9))
    if subject:
        before = max(average(subject, "the demo's model", "class"), 1e-9)
        kept, lost = (average(subject, method, "class") / before for method in ("with class images", "without"))
        claims.append(make_claim("accuracy on the class over that before, with class images", kept, "ratio", 0.8))
        text = "accuracy on the class over that before, without: it collapses"
        claims.append(make_claim(text, lost, "ratio", 0.5, at_most=True))
        kept, lost = (average(subject, method, "bare class collapsed") for method in ("with class images", "without"))
        text = "prompts of the class without a colour that show the subject"
        claims.append(make_claim(f"{text}, with class images", kept, "share", 0.2, at_most=True))
        claims.append(make_claim(f"{text}, without: the class collapses", lost, "share", 0.5))
        for key, text in (("new place", "in new places"), ("beside", "beside other things")):
            value = average(subject, "with class images", key)
            claims.append(make_claim(f"the subject {text}, with class images", value, "share", 0.5))
    return claims


def main() -> None:
    """Measures every seed, writes the result and prints its claims."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", help="a finished run of configs/demo.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=2400, help="updates from nothing")
    parser.add_argument("--subject-steps", type=int, default=600)
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--part", choices=["colour", "subject"], help="only this one")
    parser.add_argument("--rows", help="file of what is measured already, to which is added")
    given = parser.parse_args()
    rows = Rows(given.rows)
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(given.demo, scratch)
        for seed in given.seeds:
            if given.part != "subject":
                measure_colour(bench, rows, seed, given.steps, given.images, given.prompts)
            if given.part != "colour":
                measure_subject(bench, rows, seed, given.subject_steps, given.prompts)
    names = ("steps", "subject_steps", "images", "prompts")
    sizes = {name: getattr(given, name) for name in names} | {"seeds": sorted({row["seed"] for row in rows.rows})}
    write_result("finetuning", rows.rows, make_claims(rows.rows), ("torch",), sizes=sizes)


if __name__ == "__main__":
    main()
