"""VQ refinement and adversarial training on the pack of a finished run.

    python -m benchmarks.vq RUN [PART]

RUN has images of 16 and 64 pixels, as configs/demo.yaml and configs/bert_vq.yaml make it. Parts: ``sizes``
(reconstruction and use of the codes against the resolutions that the run has), ``adversary`` (an autoencoder and a
super-resolution stage, each trained with and without a discriminator, from the same seed), ``refinement`` (a refinement
stage against a diffusion stage, each the run's own or if it has none one trained here, and bicubic resizing; 0
CPU-seconds of training for the run's own; and the diffusion stage with the dynamic threshold in place of the static
one). Rows of the other parts are kept from the last result; each row has its commit and CPU.

Every measure is on held-out images. Sharpness is the root mean square of the image's gradient, as a share of that of
the true images: 1 is as sharp. The colour shift is the largest difference, over the three channels, between the mean
colour of all made images and of the true ones, on the scale of 255. FD is the Frechet distance in the features of the
CLIP of the run.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import Tensor

from benchmarks.result import RESULTS, describe_origin, make_claim, read_rows, write_result
from benchmarks.sampling import measure_distance
from dataprep.io.storage import read_json_lines
from eval.sampling.cascade import Cascade
from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.generators import generate
from eval.sampling.stage_sampler import EncodedPrompts, LoadedStage, SamplerInputs
from pipeline.inference.sample import load_cascade
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run
from train.diffusion.config import DiffusionConfig
from train.diffusion.objective import to_model_range, to_pixels
from train.loader.config import LoaderConfig
from train.loader.loader import VALIDATION, Loader
from train.loader.shard_index import index_shards
from train.models.export import load_stage
from train.models.refiner.refiner import Refiner
from train.models.vq.stage_folder import load_autoencoder
from train.tasks.diffusion import train_diffusion
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.refinement import train_refinement
from train.tasks.refinement_config import RefinementTrainingConfig
from train.tasks.vq import peak_signal_to_noise, train_vq
from train.tasks.vq_config import VqTrainingConfig

IMAGES, BATCH = 192, 48  # held-out images that are measured
LOOP: dict[str, Any] = {"batch_size": 16, "warmup_steps": 50, "ema_decay": 0.99, "zero_stage": 0, "log_every": 20}
VQ: dict[str, Any] = LOOP | {"steps": 500, "learning_rate": 2e-3, "codebook_decay": 0.97, "model": "vq-tiny"}
SR: dict[str, Any] = LOOP | {
    "resolution": 64,
    "low_resolution": 16,
    "model": "tiny-sr64",
    "steps": 300,
    "learning_rate": 2e-3,
    "diffusion": {"prediction": "x0", "weighting": "plain", "lowres_max_level": 0.3},
}
REFINE: dict[str, Any] = LOOP | {
    "resolution": 64,
    "low_resolution": 16,
    "model": "refiner-tiny",
    "autoencoder": "vq64",
    "steps": 600,
    "learning_rate": 2e-3,
}
ADVERSARIAL = {"vq": {"weight": 0.05, "start": 100}, "sr": {"weight": 0.05, "start": 100}}
SETTINGS = SamplingConfig(guidance=1.0, steps=8, temperature=0.0)
DYNAMIC = SETTINGS.model_copy(update={"threshold": "dynamic"})
PARTS = ("sizes", "adversary", "refinement")


class HeldOut(NamedTuple):
    """Held-out images of a run, and their captions."""

    large_BCHW: Tensor  # 64x64, in [-1, 1]
    small_BCHW: Tensor  # 16x16
    text: EncodedPrompts


class Bench:
    """The data of a run, and trainings on it in folders of their own."""

    def __init__(self, folder: str, scratch: Path) -> None:
        self.run, self.scratch = Run(folder), scratch
        self.artifacts: dict[str, Artifact] = self.run.artifacts()
        self.pack, self.embed = self.artifacts["pack"].files(), self.artifacts["embed"].files()

    def index(self, *sizes: int, captions: bool = True) -> str:
        """Writes the index of the pack for these resolutions; returns its path."""
        path = str(self.scratch / f"index-{'-'.join(map(str, sizes))}-{captions}.parquet")
        index_shards(self.pack, self.embed if captions else None, [f"pixels_{size}" for size in sizes]).write(path)
        return path

    def train_vq(self, name: str, size: int, **changes: Any) -> tuple[Path, float]:
        """Trains an autoencoder; returns its folder and the CPU-seconds."""
        config = VqTrainingConfig(**(VQ | {"resolution": size} | changes))
        index = self.index(size, captions=config.adversarial is not None)
        return self._timed(name, lambda out: train_vq(index, False, config, out, 0))

    def train_stage(self, name: str, **changes: Any) -> tuple[Path, float]:
        """Trains a super-resolution diffusion stage; returns its folder and the CPU-seconds."""
        config = DiffusionTrainingConfig(**(SR | changes))
        return self._timed(name, lambda out: train_diffusion(self.index(64, 16), False, config, out, 0))

    def train_refinement(self, name: str, autoencoder: Path) -> tuple[Path, float]:
        """Trains a refinement stage; returns its folder and the CPU-seconds."""
        vq = VqTrainingConfig(**(VQ | {"resolution": 64}))
        config = RefinementTrainingConfig(**REFINE).take_from({"vq64": vq})
        where = str(autoencoder / "export")
        return self._timed(name, lambda out: train_refinement(self.index(64, 16), False, where, config, out, 0))

    def _timed(self, name: str, train: Callable[[str], Any]) -> tuple[Path, float]:
        folder = self.scratch / name
        before = time.process_time()
        train(str(folder))
        return folder, time.process_time() - before

    def held_out(self) -> HeldOut:
        """Returns the first `IMAGES` held-out images, in their shuffled order."""
        loader = Loader(self.pack, self.embed, ("pixels_64", "pixels_16"), VALIDATION, 0, IMAGES, None, LoaderConfig())
        batch = loader.first(min(IMAGES, len(loader)))
        text = EncodedPrompts(batch["text_BLD"], batch["text_mask_BL"])
        return HeldOut(to_model_range(batch["pixels_64"]), to_model_range(batch["pixels_16"]), text)


def measure_sharpness(image_BCHW: Tensor) -> float:
    """Returns the root mean square of the gradient of brightness, by differences of neighbouring pixels.

    The plain mean would not do: across an edge it is the same however wide the edge is.
    """
    grey_BHW = image_BCHW.mean(1)
    across_BHW = grey_BHW[:, :-1, 1:] - grey_BHW[:, :-1, :-1]
    down_BHW = grey_BHW[:, 1:, :-1] - grey_BHW[:, :-1, :-1]
    return float((across_BHW.square() + down_BHW.square()).mean().sqrt())


def compare(made_BCHW: Tensor, true_BCHW: Tensor, scorer: Any) -> dict[str, float]:
    """Returns PSNR, FD, sharpness and colour shift of made images."""
    made_BCHW = made_BCHW.clamp(-1, 1)
    features = [scorer.image_features(list(to_pixels(images).numpy())) for images in (made_BCHW, true_BCHW)]
    shift = (made_BCHW.mean((0, 2, 3)) - true_BCHW.mean((0, 2, 3))).abs().max() * 127.5
    return {
        "psnr": round(float(peak_signal_to_noise(made_BCHW, true_BCHW).mean()), 2),
        "fd": round(measure_distance(*features), 4),
        "sharpness": round(measure_sharpness(made_BCHW) / measure_sharpness(true_BCHW), 4),
        "colour_shift": round(float(shift), 3),
    }


def measure_sizes(bench: Bench, scorer: Any) -> list[dict[str, Any]]:
    """Returns a row per resolution: errors of held-out images, and use of the codes."""
    rows = []
    for size in bench.run.record()["config"]["pack"]["resolutions"]:
        folder, seconds = bench.train_vq(f"vq{size}", size, **({"crop": 64} if size > 64 else {}))
        loader = Loader(bench.pack, None, (f"pixels_{size}",), VALIDATION, 0, BATCH, None, LoaderConfig())
        true_BCHW = to_model_range(loader.first(BATCH)[f"pixels_{size}"])
        model = load_autoencoder(folder / "export")
        with torch.inference_mode():
            codes_Bhw = model.encode(true_BCHW)
            made_BCHW = model.decode(codes_Bhw).clamp(-1, 1)
        share_K = torch.bincount(codes_Bhw.flatten(), minlength=model.config.codes) / codes_Bhw.numel()
        entropy = float(-(share_K * share_K.clamp(min=1e-12).log2()).sum())
        last = read_json_lines(str(folder / "log.jsonl"))[-1]
        row: dict[str, Any] = {
            "part": "sizes",
            "resolution": size,
            "codes": codes_Bhw[0].numel(),
            "of": model.config.codes,
        }
        row |= {"bits_per_pixel": round(entropy * codes_Bhw[0].numel() / size**2, 4)}
        row |= {"l1_of_255": round(float((made_BCHW - true_BCHW).abs().mean()) * 127.5, 3)}
        row |= {"psnr": round(float(peak_signal_to_noise(made_BCHW, true_BCHW).mean()), 2)}
        row |= {"codes_used": round(float((share_K > 0).float().mean()), 4), "perplexity": round(2**entropy, 1)}
        row |= {"revived_at_end": round(last["codes_revived"], 4), "train_cpu_seconds": round(seconds)}
        print(row, flush=True)
        rows.append(row)
    return rows


def sample(stage: LoadedStage, held_out: HeldOut, settings: SamplingConfig = SETTINGS) -> tuple[Tensor, float]:
    """Returns what a stage makes of the true small images, and the CPU-seconds an image."""
    parts, before = [], time.process_time()
    count = len(held_out.large_BCHW)
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            rows = slice(start, start + BATCH)
            mask_BL = held_out.text.mask_BL
            text = EncodedPrompts(held_out.text.tokens_BLD[rows], None if mask_BL is None else mask_BL[rows])
            inputs = SamplerInputs(text, lowres_BCHW=held_out.small_BCHW[rows])
            parts.append(
                generate(stage, settings, inputs, [(0, row) for row in range(start, min(start + BATCH, count))])
            )
    return torch.cat(parts), (time.process_time() - before) / count


def open_stage(folder: Path) -> LoadedStage:
    """Returns a trained super-resolution stage."""
    model, settings = load_stage(folder)
    entry = StageEntry(name="sr64", resolution=64, low_resolution=16, path=str(folder))
    return LoadedStage(entry, model, DiffusionConfig(**settings["diffusion"]))


def measure_adversary(bench: Bench, scorer: Any) -> list[dict[str, Any]]:
    """Returns a row each for the autoencoder and the diffusion stage, without and with a discriminator."""
    rows, held_out = [], bench.held_out()
    for kind in ("vq", "sr"):
        for adversarial in (None, ADVERSARIAL[kind]):
            name, more = f"{kind}-{'with' if adversarial else 'without'}", {"adversarial": adversarial}
            if kind == "vq":
                folder, seconds = bench.train_vq(name, 64, **more)
                with torch.inference_mode():
                    model = load_autoencoder(folder / "export")
                    made_BCHW = model.decode(model.encode(held_out.large_BCHW))
            else:
                folder, seconds = bench.train_stage(name, **more)
                made_BCHW, _ = sample(open_stage(folder / "export"), held_out)
            last = read_json_lines(str(folder / "log.jsonl"))[-1]
            row: dict[str, Any] = {"part": "adversary", "trained": kind, "adversarial": adversarial}
            row |= compare(made_BCHW, held_out.large_BCHW, scorer) | {"train_cpu_seconds": round(seconds)}
            row |= {name: round(value, 4) for name, value in last.items() if name.startswith("adversarial_")}
            print(row, flush=True)
            rows.append(row)
    return rows


def find_diffusion_stage(bench: Bench, cascade: Cascade) -> tuple[LoadedStage, float]:
    """Returns the run's diffusion stage at 64 pixels, or one trained here, and the CPU-seconds of that training."""
    for stage in cascade.stages:
        if stage.entry.resolution == 64 and not isinstance(stage.model, Refiner):
            return stage, 0.0
    folder, seconds = bench.train_stage("diffusion")
    return open_stage(folder / "export"), seconds


def find_refinement_stage(bench: Bench, cascade: Cascade) -> tuple[LoadedStage, float]:
    """Returns the run's refinement stage at 64 pixels, or one trained here, and the CPU-seconds of all its training."""
    for stage in cascade.stages:
        if stage.entry.resolution == 64 and isinstance(stage.model, Refiner):
            return stage, 0.0
    vq, vq_seconds = bench.train_vq("vq64-refined", 64)
    folder, seconds = bench.train_refinement("refined", vq)
    return open_stage(folder / "export"), vq_seconds + seconds


def measure_refinement(bench: Bench, cascade: Cascade) -> list[dict[str, Any]]:
    """Returns a row each for bicubic resizing, a diffusion and a refinement stage, and the codes of the true images."""
    held_out = bench.held_out()
    before = time.process_time()
    small = [image.numpy() for image in to_pixels(held_out.small_BCHW)]
    large = [cv2.resize(image, (64, 64), interpolation=cv2.INTER_CUBIC) for image in small]
    seconds = (time.process_time() - before) / len(large)
    made = {"bicubic": (to_model_range(torch.from_numpy(np.stack(large))), seconds, 0.0)}
    stage, stage_seconds = find_diffusion_stage(bench, cascade)
    made["diffusion"] = (*sample(stage, held_out), stage_seconds)
    made["diffusion, dynamic threshold"] = (*sample(stage, held_out, DYNAMIC), stage_seconds)
    stage, stage_seconds = find_refinement_stage(bench, cascade)
    made["refinement"] = (*sample(stage, held_out), stage_seconds)
    with torch.inference_mode():
        model = cast(Refiner, stage.model).autoencoder
        assert model is not None
        made["true codes"] = (model.decode(model.encode(held_out.large_BCHW)), 0.0, 0.0)
    rows = []
    for name, (image_BCHW, each, trained) in made.items():
        row = {"part": "refinement", "by": name, **compare(image_BCHW, held_out.large_BCHW, cascade.scorer)}
        row |= {"cpu_seconds_an_image": round(each, 5), "train_cpu_seconds": round(trained)}
        print(row, flush=True)
        rows.append(row)
    return rows


def make_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the claims that the rows at hand decide."""
    found = []
    sizes = {row["resolution"]: row for row in rows if row["part"] == "sizes"}
    if sizes:
        used = min(row["codes_used"] for row in sizes.values())
        found.append(make_claim("codes in use by held-out images, least of all resolutions", used, "share", 0.5))
    for kind, label in (("vq", "autoencoder"), ("sr", "diffusion stage")):
        pair = [row for row in rows if row["part"] == "adversary" and row["trained"] == kind]
        if len(pair) == 2:
            gain = abs(1 - pair[0]["sharpness"]) - abs(1 - pair[1]["sharpness"])
            found.append(make_claim(f"{label}: nearer to the true sharpness with a discriminator", gain, "share", 0.0))
            found.append(make_claim(f"{label}: colour shift with it", pair[1]["colour_shift"], "of 255", 2.0, True))
    by = {row["by"]: row for row in rows if row["part"] == "refinement"}
    if by:
        gain = by["refinement"]["psnr"] - by["bicubic"]["psnr"]
        found.append(make_claim("refinement over bicubic, PSNR", gain, "dB", 0.0))
        ratio = by["refinement"]["fd"] / by["diffusion"]["fd"]
        found.append(make_claim("refinement's FD over the diffusion stage's", ratio, "ratio", 1.0, True))
        ratio = by["refinement"]["cpu_seconds_an_image"] / by["diffusion"]["cpu_seconds_an_image"]
        found.append(
            make_claim("refinement's CPU-seconds an image over the diffusion stage's", ratio, "ratio", 1.0, True)
        )
    return found


def main() -> None:
    """Measures the part that is named, or all, and writes the result."""
    torch.set_num_threads(1)
    folder, parts = sys.argv[1], sys.argv[2:3] or list(PARTS)
    cascade = load_cascade(folder)
    rows = read_rows("vq") if (RESULTS / "vq.json").exists() else []
    with tempfile.TemporaryDirectory(prefix="imagen-ray-bench-") as scratch:
        bench = Bench(folder, Path(scratch))
        for part in parts:
            if part == "refinement":
                measured = measure_refinement(bench, cascade)
            else:
                measured = {"sizes": measure_sizes, "adversary": measure_adversary}[part](bench, cascade.scorer)
            rows = [row for row in rows if row["part"] != part]
            rows += [row | describe_origin() for row in measured]
            more = {
                "images": IMAGES,
                "vq": VQ,
                "sr": SR,
                "refine": REFINE,
                "settings": SETTINGS.model_dump(mode="json"),
            }
            write_result("vq", rows, make_claims(rows), ("torch",), **more)


if __name__ == "__main__":
    main()
