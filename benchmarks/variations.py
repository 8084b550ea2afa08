"""What variations of an image keep and vary, and how interpolations pass from one end to the other.

    python -m benchmarks.variations RUN [PICTURE]

RUN is a finished run of configs/dalle2.yaml, or its export; PICTURE is an image file to write: rows of a source and its
variations, then interpolations. Sources are fresh drawings of the grammar's seen combinations, of one group of objects,
which no model was trained on. Of each, variations are sampled without a caption, up to 64 pixels, and read by the
composition checker: colour, shape and count against what was drawn; and where the objects lie, as the middle of all of
them, against where they lay in the source. Chance is the same of the variations of another source.

Interpolations go between two drawings of one object each, which differ in colour and shape, and from a drawing to a
caption, with the same noise at every share.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.result import make_claim, write_result
from dataprep.io.errors import UserError
from dataprep.synthetic.grammar import Claim, render_caption, sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.metrics.composition import FoundShape, find_shapes, judge_shapes
from eval.sampling.cascade import Cascade
from eval.sampling.options import SamplingOptions
from pipeline.inference.sample import load_cascade

SOURCES, VARIATIONS, PAIRS, SHARES, SEED = 48, 8, 24, 9, 11
SIDE, DETAIL = 64, 256  # pixels of what is judged, and of a drawing
KEPT = ("colour", "shape", "count")


@dataclass(frozen=True)
class Drawing:
    """A drawn scene."""

    claim: Claim
    image_HWC: np.ndarray


def draw_sources(count: int, single: bool, seed: int) -> list[Drawing]:
    """Draws scenes of one group each; with ``single`` of one object."""
    found: list[Drawing] = []
    rng = np.random.default_rng(seed)
    while len(found) < count:
        claim = sample_claim(rng, related=0.0)
        if not single or claim.first.count == 1:
            found.append(Drawing(claim, draw_scene(claim, rng, DETAIL)))
    return found


def find_stage(cascade: Cascade) -> str:
    """Returns the name of the stage whose images are judged."""
    return next(stage.entry.name for stage in cascade.stages if stage.entry.resolution == SIDE)


def sample(cascade: Cascade, source: Drawing, num: int, seed: int, **ends: Any) -> list[np.ndarray]:
    """Samples variations of a drawing, or with ``ends`` an interpolation from it."""
    given = Image.fromarray(source.image_HWC)
    options = SamplingOptions(num=num, seed=seed, variations_of=given, stop_at=find_stage(cascade), **ends)
    return [np.asarray(image) for image in cascade.sample([""], options).images]


def judge(found: Sequence[FoundShape], claim: Claim) -> dict[str, bool]:
    """Returns which of `KEPT` the objects show, and whether they show all three."""
    checks = judge_shapes(found, claim)
    kept = {name: checks[name] for name in KEPT}
    return kept | {"all": all(kept.values())}


def find_middle(found: Sequence[FoundShape]) -> np.ndarray | None:
    """Returns the mean place of the objects, shares of the side (2,); None without any."""
    return np.array([[item.x, item.y] for item in found]).mean(0) if found else None


def measure_variations(cascade: Cascade) -> tuple[list[dict[str, Any]], list[list[np.ndarray]]]:
    """Returns a row on each attribute and on places, and the images of each source, itself first."""
    sources = draw_sources(SOURCES, False, SEED)
    images = [sample(cascade, source, VARIATIONS, SEED + number) for number, source in enumerate(sources)]
    shapes = [[find_shapes(image) for image in part] for part in images]
    drawn = [find_shapes(source.image_HWC) for source in sources]
    own = [judge(found, source.claim) for source, part in zip(sources, shapes, strict=True) for found in part]
    turned = [*shapes[1:], shapes[0]]
    other = [judge(found, source.claim) for source, part in zip(sources, turned, strict=True) for found in part]
    reading = [judge(found, source.claim) for source, found in zip(sources, drawn, strict=True)]
    rows: list[dict[str, Any]] = [
        {
            "measure": name,
            "variations": share([check[name] for check in own]),
            "other_source": share([check[name] for check in other]),
            "source": share([check[name] for check in reading]),
        }
        for name in (*KEPT, "all")
    ]
    rows.append({"measure": "distance of the middle", **measure_places(shapes, drawn)})
    return rows, [[source.image_HWC, *part] for source, part in zip(sources, images, strict=True)]


def share(values: Sequence[bool]) -> float:
    """Returns the share that is true."""
    return round(float(np.mean(values)), 4)


def measure_places(shapes: Sequence[Sequence[Sequence[FoundShape]]], drawn: Sequence[Sequence[FoundShape]]) -> Any:
    """Returns mean distances, as shares of the side: of a variation from its source, of variations of one source from
    each other, and of a variation from another source."""
    middles = [[find_middle(found) for found in part] for part in shapes]
    places = [find_middle(found) for found in drawn]

    def distance(one: Sequence[np.ndarray | None], other: Sequence[np.ndarray | None]) -> float:
        pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
        if not pairs:
            raise UserError("no two images to compare show an object; train the model for longer")
        return round(float(np.mean([np.linalg.norm(a - b) for a, b in pairs])), 4)

    flat = [place for part in middles for place in part]
    repeated = [place for place in places for _ in range(VARIATIONS)]
    shifted = [*repeated[VARIATIONS:], *repeated[:VARIATIONS]]
    following = [place for part in middles for place in [*part[1:], part[0]]]
    return {
        "with_objects": share([place is not None for place in flat]),  # the others have no place
        "variations": distance(flat, repeated),
        "each_other": distance(flat, following),
        "other_source": distance(flat, shifted),
    }


def measure_interpolations(cascade: Cascade) -> tuple[list[dict[str, Any]], list[list[np.ndarray]]]:
    """Returns a row for each share of the way and kind of end, and the images of each way between two drawings."""
    sources = draw_sources(6 * PAIRS, True, SEED + 1)
    pairs = ((one, two) for one, two in zip(sources[::2], sources[1::2], strict=True) if differ(one.claim, two.claim))
    ways: dict[str, list[list[np.ndarray]]] = {"image": [], "caption": []}
    chosen = list(islice(pairs, PAIRS))
    for number, (one, two) in enumerate(chosen):
        end = Image.fromarray(two.image_HWC)
        ways["image"].append(sample(cascade, one, SHARES, SEED + number, to_image=end))
        caption = render_caption(two.claim)
        ways["caption"].append(sample(cascade, one, SHARES, SEED + number, to_prompt=caption))
    rows = []
    for kind, images in ways.items():
        for at in range(SHARES):
            row: dict[str, Any] = {"measure": f"to {kind}", "share": round(at / (SHARES - 1), 3)}
            for name in ("colour", "shape"):
                for side, label in ((0, "start"), (1, "end")):
                    checks = [
                        judge(find_shapes(way[at]), pair[side].claim)[name]
                        for way, pair in zip(images, chosen, strict=True)
                    ]
                    row[f"{name}_of_{label}"] = share(checks)
            rows.append(row)
    return rows, ways["image"]


def differ(one: Claim, two: Claim) -> bool:
    """Returns whether two claims of one object each name another colour and another shape."""
    return one.first.colour != two.first.colour and one.first.shape != two.first.shape


def make_claims(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns what the rows show."""
    by_name = {row["measure"]: row for row in rows if "share" not in row}
    claims = [
        make_claim(f"variations keep the {name} of the image", 100 * by_name[name]["variations"], "%", target)
        for name, target in (("colour", 90), ("shape", 80), ("count", 80))
    ]
    places = by_name["distance of the middle"]
    varied = 100 * places["each_other"] / places["other_source"]
    claims.append(
        make_claim("places of variations differ, of what those of other images do", varied, "% of that distance", 25)
    )
    for kind in ("image", "caption"):
        way = [row for row in rows if row["measure"] == f"to {kind}"]
        for name in ("colour", "shape"):
            start, end = way[0][f"{name}_of_start"], way[-1][f"{name}_of_end"]
            words = f"an interpolation to {'an' if kind == 'image' else 'a'} {kind} begins and ends with the {name}"
            claims.append(make_claim(f"{words} of its ends", 100 * min(start, end), "%", 80))
            falls = sum(row[f"{name}_of_end"] < before[f"{name}_of_end"] - 0.05 for before, row in pairwise(way))
            claims.append(make_claim(f"on the way to {kind}, steps back in {name}", falls, "steps", 0, at_most=True))
    return claims


def make_picture(variations: Sequence[Sequence[np.ndarray]], ways: Sequence[Sequence[np.ndarray]]) -> Image.Image:
    """Returns a sheet: five sources, each before its variations, then four interpolations."""
    rows = [list(part) for part in variations[:5]] + [list(way) for way in ways[:4]]
    columns, gap = max(map(len, rows)), 4
    sheet = Image.new("RGB", (columns * (SIDE + gap) - gap, len(rows) * (SIDE + gap) + gap), "white")
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            small = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BOX)
            sheet.paste(small, (column * (SIDE + gap), row * (SIDE + gap) + (2 * gap if row >= 5 else 0)))
    return sheet


def main() -> None:
    """Measures, writes the result, and the picture if asked for."""
    torch.set_num_threads(1)
    cascade = load_cascade(sys.argv[1])
    rows, variations = measure_variations(cascade)
    more, ways = measure_interpolations(cascade)
    for row in [*rows, *more]:
        print(row)
    settings = {stage.entry.name: stage.entry.sampling.model_dump(mode="json") for stage in cascade.parts}
    known = {"sources": SOURCES, "variations": VARIATIONS, "pairs": PAIRS, "settings": settings}
    write_result("variations", [*rows, *more], make_claims([*rows, *more]), ("torch",), **known)
    if len(sys.argv) > 2:
        make_picture(variations, ways).save(sys.argv[2])


if __name__ == "__main__":
    main()
