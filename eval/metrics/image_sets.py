"""Sets of images and what models say of them: the work on samples and references that every evaluation shares.

The stage `evaluate` runs it in workers, shard by shard; `imagen-ray evaluate` in its own process.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprep.images.decode import decode_rgb, read_shard_rgb
from dataprep.images.resize import resize_square
from eval.metrics.composition import check_image
from eval.metrics.config import OWN_CLIP, FeaturesConfig
from eval.metrics.feature_tables import make_features_table
from eval.metrics.judges.base import JudgeImages, Verdict
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.judges.registry import JUDGES
from eval.metrics.samples_table import EVALUATE, JudgedSample, Role, read_samples
from eval.sampling.prompts import EvalPrompt

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer, ClipSpec
    from eval.metrics.feature_extractors import FeatureExtractor

READ_ROWS = 256  # images at a time

Item = TypeVar("Item")
NamedImage = tuple[str, np.ndarray, str]  # id, uint8 (H, W, 3), caption


def load_feature_models(clip: ClipSpec, features: Sequence[FeaturesConfig], device: str) -> dict[str, FeatureExtractor]:
    """Loads the CLIP that scores, as `OWN_CLIP`, and the other feature models."""
    from eval.clip.scorer import ClipScorer
    from eval.metrics.feature_extractors import load_extractor

    own = ClipScorer.load(clip, device)
    return {OWN_CLIP: own} | {config.key: load_extractor(config, own, device) for config in features}


def load_judges(judges: Sequence[JudgeConfig], own: ClipScorer, device: str) -> dict[str, JudgeImages]:
    """Loads the judges by their names in metrics.json."""
    return {config.key: JUDGES[config.kind].load(config, own, device) for config in judges}


def check_judges(judges: Sequence[JudgeConfig]) -> list[str]:
    """Returns the files of the judges; raises UserError for one that cannot be loaded."""
    return [path for config in judges for path in JUDGES[config.kind].check(config)]


# ---------------------------------------------------------------------------------------------- samples


def judge_sample(
    image: Image.Image,
    prompt: EvalPrompt,
    clip_score: float,
    *,
    role: Role = EVALUATE,
    seed: int = 0,
    index: int = 0,
    chosen: bool = True,
    stage: str = "",
) -> JudgedSample:
    """Returns the row of the samples' table for an image, with what the composition checker finds in it."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return JudgedSample(
        role=role,
        prompt=prompt.prompt,
        split=prompt.split,
        language=prompt.language,
        claim=prompt.claim,
        checks=check_image(np.asarray(image), prompt.claim) if prompt.claim is not None else None,
        seed=seed,
        index=index,
        chosen=chosen,
        stage=stage,
        size=image.width,
        clip_score=clip_score,
        png=buffer.getvalue(),
    )


def say_verdicts(
    judges: Mapping[str, JudgeImages], images: Sequence[np.ndarray], prompts: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns what every judge says of images: {judge, prompt, values}; nothing where a judge has nothing to say."""
    return [
        {"judge": name, "prompt": prompt, "values": dict(values)}
        for name, judge in judges.items()
        for prompt, values in zip(prompts, judge(images, prompts), strict=True)
        if values
    ]


def read_verdicts(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Verdict]]:
    """Returns the rows of `say_verdicts` by judge."""
    found: dict[str, list[Verdict]] = {}
    for row in rows:
        found.setdefault(row["judge"], []).append(Verdict(row["prompt"], row["values"]))
    return found


def read_first_samples(path: str, size: int | None = None) -> Iterator[NamedImage]:
    """Yields the first candidate of each judged prompt: samples without a choice. As squares of ``size`` if given."""
    for sample in read_samples([path], EVALUATE, images=True):
        if sample.index == 0:
            pixels = sample.pixels() if size is None else resize_square(sample.pixels(), size)
            yield sample_id(sample), pixels, sample.prompt


def sample_id(sample: JudgedSample) -> str:
    """Returns the id of a first candidate among the features."""
    return f"{sample.prompt}|{sample.seed}"


# ---------------------------------------------------------------------------------------------- features


def read_reference_images(files: Mapping[str, str], size: int) -> Iterator[NamedImage]:
    """Yields images from outside, name -> file or tar, as squares of ``size``."""
    for name, path in files.items():
        if path.endswith(".tar"):
            for key, image in read_shard_rgb(path):
                yield f"{name}/{key}", resize_square(image, size), ""
        else:
            yield name, resize_square(decode_rgb(Path(path).read_bytes()), size), ""


def tabulate_features(
    models: Mapping[str, FeatureExtractor], set_name: str, images: Iterable[NamedImage], captioned: bool
) -> Iterator[pa.Table]:
    """Yields tables of the features of images of one size, and of their captions where these are ``captioned``."""
    for part in group(iter(images), READ_ROWS):
        ids, pixels, captions = zip(*part, strict=True)
        yield make_features_table(models, set_name, ids, pixels, captions if captioned else None)


def group(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Yields lists of at most ``size`` items."""
    return iter(lambda: list(islice(items, size)), [])
