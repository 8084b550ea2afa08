"""What a finished run of configs/flags.yaml knows of the flags: its CLIP, and its samples, by language.

    python -m benchmarks.flags runs/flags [--picture flags.png]

prompts.csv of examples/flags.py has two captions of each flag: ``seen`` in training, and ``heldout``, which nothing of
the run has read. Of both:

- Retrieval by CLIP. Text to image: which of all images has the caption? Image to text: which of all captions of the
  split has the image? Recall at 1 and 5, against chance.
- Samples: of which flag is the image nearest to the sample, by the root mean square of the difference of all
  pixels, at the size of the samples? The share that are nearest to the flag that was asked for, with its 95% interval,
  and the same share by chance: of samples assigned to the prompts at random.

Several territories fly the same flag, such as that of France: images that differ by less than `ALIKE` are one, and
each of their names is right for it. Seen captions that the run took for validation are left out of the samples. Seconds
are those of the stages, one after another; operations are counted.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from math import comb
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from benchmarks.flops import count_run
from benchmarks.result import make_claim, write_result
from dataprep.images.resize import resize_square
from dataprep.io.parquet import read_table
from eval.clip.scorer import ClipScorer
from eval.metrics.intervals import wilson_interval
from eval.metrics.samples_table import EVALUATE, JudgedSample, read_samples
from pipeline.stages.clip import read_clip_spec
from pipeline.store.run import Run

ALIKE = 8.0  # grey levels: the same flag drawn twice differs by at most 6, the nearest two of others by 17
TOP = (1, 5)  # of the recall
SHOWN = 16  # flags of the sheet
SPLITS = {"seen": "captions seen", "heldout": "captions held out"}
MINUTES, ABOVE_CHANCE = 60.0, 10.0
SAMPLES = {"seen": 0.8, "heldout": 0.3}  # targets of the share of samples
Row = dict[str, Any]


class Prompt(NamedTuple):
    """A row of prompts.csv."""

    prompt: str
    split: str
    language: str
    code: str


class Flags(NamedTuple):
    """Images, uint8 RGB (N, side, side, 3), by code; ``look_N``: the first image that looks the same, int."""

    codes: list[str]
    images_NHWC: np.ndarray
    look_N: np.ndarray


def read_prompts(path: str | Path) -> list[Prompt]:
    """Reads prompts.csv."""
    with open(path, newline="", encoding="utf-8") as file:
        return [Prompt(**row) for row in csv.DictReader(file)]


def read_flags(folder: str | Path, codes: Sequence[str], side: int) -> Flags:
    """Reads the image of each code at ``side`` pixels: the mean of its files, whose sizes differ."""
    images_NHWC = np.stack([_read_image(sorted(Path(folder).glob(f"{code}-*.png")), side) for code in codes])
    return Flags(list(codes), images_NHWC, (measure_distances(images_NHWC, images_NHWC) < ALIKE).argmax(axis=1))


def _read_image(files: Sequence[Path], side: int) -> np.ndarray:
    images = [resize_square(np.asarray(Image.open(file).convert("RGB")), side) for file in files]
    return np.mean(images, axis=0).round().astype(np.uint8)


def measure_distances(one_MHWC: np.ndarray, other_NHWC: np.ndarray) -> np.ndarray:
    """Returns the root mean square of the difference of each pair of images, in grey levels, (M, N)."""
    one_MP, other_NP = (images.reshape(len(images), -1).astype(np.float64) for images in (one_MHWC, other_NHWC))
    squares_MN = (one_MP**2).sum(1)[:, None] + (other_NP**2).sum(1) - 2 * one_MP @ other_NP.T
    return np.asarray(np.sqrt(np.maximum(squares_MN, 0) / one_MP.shape[1]))


def measure_recall(similar_QC: np.ndarray, right_QC: np.ndarray) -> dict[str, np.ndarray]:
    """Returns, of each query, whether a right candidate is among the first, and how likely that is by chance; by key.

    Ties rank above the right one.
    """
    best_Q1 = np.where(right_QC, similar_QC, -np.inf).max(axis=1, keepdims=True)
    rank_Q = ((similar_QC >= best_Q1) & ~right_QC).sum(axis=1)
    count, found = right_QC.shape[1], {}
    for top in TOP:
        found[f"recall_at_{top}"] = (rank_Q < top).astype(float)
        tries = min(top, count)
        drawn = [1 - comb(count - int(right), tries) / comb(count, tries) for right in right_QC.sum(axis=1)]
        found[f"chance_at_{top}"] = np.asarray(drawn)
    return found


def measure_retrieval(scorer: ClipScorer, flags: Flags, prompts: Sequence[Prompt]) -> list[Row]:
    """Returns a row per language and for all of them, of the captions of one split, a caption of each flag."""
    place = {code: number for number, code in enumerate(flags.codes)}
    text_QD = scorer.text_features([prompt.prompt for prompt in prompts])
    look_Q = flags.look_N[[place[prompt.code] for prompt in prompts]]
    looks = np.unique(flags.look_N)  # each look once, as a candidate
    image_LD = scorer.image_features(list(flags.images_NHWC[looks]))
    image_QD = image_LD[np.searchsorted(looks, look_Q)]  # of each caption
    values = {
        "text_to_image": measure_recall(text_QD @ image_LD.T, look_Q[:, None] == looks),
        "image_to_text": measure_recall(image_QD @ text_QD.T, look_Q[:, None] == look_Q),
    }
    rows = []
    for language, chosen in choose_languages([prompt.language for prompt in prompts]).items():
        row: Row = {"measure": "retrieval", "split": prompts[0].split, "language": language, "n": int(chosen.sum())}
        for way, found in values.items():
            row |= {f"{way}_{key}": round(float(value_Q[chosen].mean()), 4) for key, value_Q in found.items()}
        rows.append(row)
    return rows


def judge_samples(images: Sequence[np.ndarray], prompts: Sequence[Prompt], flags: Flags) -> list[Row]:
    """Returns a row per language and for all of them, of the samples of the prompts of one split."""
    place = {code: number for number, code in enumerate(flags.codes)}
    look_Q = flags.look_N[[place[prompt.code] for prompt in prompts]]
    found_Q = flags.look_N[measure_distances(np.stack(images), flags.images_NHWC).argmin(axis=1)]
    rows = []
    for language, chosen in choose_languages([prompt.language for prompt in prompts]).items():
        asked, found = look_Q[chosen], found_Q[chosen]
        right = int((asked == found).sum())
        row: Row = {"measure": "samples", "split": prompts[0].split, "language": language, "n": len(asked)}
        row |= {"right": right / len(asked), **wilson_interval(right, len(asked))}
        row["chance"] = float((asked[:, None] == found).mean())
        rows.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    return rows


def choose_languages(languages: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns the mask of the rows of each language, and of "all"."""
    each = np.asarray(languages)
    return {"all": np.ones(len(each), bool)} | {name: each == name for name in dict.fromkeys(languages)}


def read_validation(paths: Iterable[str]) -> set[str]:
    """Returns the captions of packed shards that the cascade was not trained on."""
    tables = [read_table(path, "pack", ["caption", "split"]) for path in paths]
    rows = [row for table in tables for row in table.to_pylist()]
    return {row["caption"] for row in rows if row["split"] == "validation"}


def judge_run(run: Run) -> tuple[list[Row], Flags, dict[str, JudgedSample], list[Prompt]]:
    """Returns the rows of a finished run; its flags, samples by prompt, and prompts."""
    record, artifacts = run.record(), run.artifacts()
    config = record["config"]
    samples = {item.prompt: item for item in read_samples(artifacts["sample"].files(), EVALUATE, True) if item.chosen}
    prompts = read_prompts(config["sample"]["evaluate_prompts"])
    side = next(iter(samples.values())).size
    flags = read_flags(config["listing"]["path"], list(dict.fromkeys(prompt.code for prompt in prompts)), side)
    scorer = ClipScorer.load(read_clip_spec(artifacts["clip"]))
    validation = read_validation(artifacts["pack"].files())
    rows: list[Row] = []
    for split in SPLITS:
        chosen = [prompt for prompt in prompts if prompt.split == split]
        rows += measure_retrieval(scorer, flags, chosen)
        drawn = [prompt for prompt in chosen if prompt.prompt in samples and prompt.prompt not in validation]
        rows += judge_samples([samples[prompt.prompt].pixels() for prompt in drawn], drawn, flags)
    seconds = {stage: round(artifact.manifest.seconds, 1) for stage, artifact in artifacts.items()}
    minutes = round(sum(artifact.manifest.seconds for artifact in artifacts.values()) / 60, 2)
    rows.append({"measure": "run", "seed": config["seed"], "minutes": minutes, "seconds": seconds})
    rows[-1] |= {"flops": count_run(run), "flags": len(flags.codes), "different": len(np.unique(flags.look_N))}
    return rows, flags, samples, prompts


def make_claims(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Returns the claims on all languages together, and on time."""
    named = {(row["measure"], row.get("split")): row for row in rows if row.get("language", "all") == "all"}
    claims = []
    for split, title in SPLITS.items():
        found = named["retrieval", split]
        for way in ("text_to_image", "image_to_text"):
            times = found[f"{way}_recall_at_1"] / found[f"{way}_chance_at_1"]
            text = f"CLIP, {title}: {way.replace('_', ' ')}, recall at 1 over chance"
            claims.append(make_claim(text, times, "times", ABOVE_CHANCE))
        right = named["samples", split]["right"]
        claims.append(make_claim(f"samples nearest to their flag, {title}", right, "share", SAMPLES[split]))
    minutes = named["run", None]["minutes"]
    claims.append(make_claim("all stages, one after another", minutes, "minutes", MINUTES, at_most=True))
    return claims


def draw_picture(
    flags: Flags, samples: Mapping[str, JudgedSample], prompts: Sequence[Prompt], count: int
) -> Image.Image:
    """Draws ``count`` flags, evenly from the alphabet of codes, and below each its seen and its held-out sample."""
    of = {(prompt.code, prompt.split): samples[prompt.prompt] for prompt in prompts if prompt.prompt in samples}
    codes = sorted(code for code in flags.codes if all((code, split) in of for split in SPLITS))
    columns = []
    for code in codes[:: max(1, len(codes) // count)][:count]:
        true_HWC = flags.images_NHWC[flags.codes.index(code)]
        columns.append(np.concatenate([true_HWC, *(of[code, split].pixels() for split in SPLITS)]))
    return Image.fromarray(np.concatenate(columns, axis=1))


def main() -> None:
    """Judges the run that the command line names, writes the result and prints its claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="finished run of configs/flags.yaml")
    parser.add_argument("--picture", type=Path, help="write true flags, samples of seen and of held-out captions here")
    given = parser.parse_args()
    run = Run(given.run)
    rows, flags, samples, prompts = judge_run(run)
    if given.picture is not None:
        draw_picture(flags, samples, prompts, SHOWN).save(given.picture)
    for row in rows:
        print(row)
    record = run.record()
    ran = {"commit": record["git_commit"], "date": record["started"], "versions": record["versions"]}
    write_result("flags", rows, make_claims(rows), (), **ran)


if __name__ == "__main__":
    main()
