"""Evaluates a folder of images in this process, by the metrics of a run: from matched images to metrics.json.

Images are read twice at most and never held together; memory does not grow with their number but for the scores.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from PIL import Image

from dataprep.images.decode import ImageError, decode_rgb
from dataprep.images.resize import resize_square
from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.io.parquet import write_table
from eval.judging.image_folder import FolderImage, MatchedFolder
from eval.metrics.audit import AuditConfig, ImageAuditor
from eval.metrics.base import JudgedSamples, MeasuredFeatures
from eval.metrics.config import OWN_CLIP, FeaturesConfig, MemorisationConfig
from eval.metrics.feature_models import ClipIdentity, describe_space
from eval.metrics.feature_sets import REFERENCE_SET, SAMPLE_SET, Subsample
from eval.metrics.feature_tables import CollectedFeatures, collect_features
from eval.metrics.image_sets import (
    NamedImage,
    judge_sample,
    load_feature_models,
    load_judges,
    read_verdicts,
    say_verdicts,
    tabulate_features,
)
from eval.metrics.judges.config import JudgeConfig
from eval.metrics.memorisation import CopySearch, NearestImages, Queries, search_images
from eval.metrics.registry import compute_metrics
from eval.metrics.samples_table import JudgedSample, SampleKey

if TYPE_CHECKING:
    from eval.clip.scorer import ClipScorer
    from eval.metrics.feature_extractors import FeatureExtractor

Advance = Callable[[int], None]
FindImage = Callable[[str, int], np.ndarray | None]
ReadImages = Callable[[int], Iterator[NamedImage]]  # images as squares of a size


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """Images to compare with: what they are for people, and functions that read them as squares of a size."""

    name: str
    read: ReadImages
    find: FindImage = lambda name, size: None  # one of them by name; None: not there any more
    set_name: str = REFERENCE_SET
    captioned: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a folder of images is judged by.

    Attributes:
        clip: arguments of `ClipScorer.load`.
        identity: what figures say of that CLIP.
        reference: the images that distances are measured to; None: no distances.
        training: the training images, among which near copies are looked for; None: none are.
        held_out: images like those of ``training`` that the model never saw; None: training images, each compared with
            the others, take their place.
        audit: what is looked for in the first image of each prompt.
        size: height and width in pixels that images are compared at; None: the most frequent one of the images.
        features_folder: local folder for tables of features.
    """

    clip: Mapping[str, str | None]
    identity: ClipIdentity
    features: Sequence[FeaturesConfig] = (FeaturesConfig(),)
    judges: Sequence[JudgeConfig] = ()
    reference: ImageSource | None = None
    training: ImageSource | None = None
    held_out: ImageSource | None = None
    memorisation: MemorisationConfig = field(default_factory=MemorisationConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    size: int | None = None
    subsample: int
    device: str = "cpu"
    features_folder: Path


@dataclass(frozen=True)
class FolderSamples(JudgedSamples):
    """Judged images that lie in a folder, in place of tables."""

    files: Mapping[SampleKey, Path] = field(default_factory=dict)
    side: int = 0

    def read_pixels(self, keys: Collection[SampleKey]) -> dict[SampleKey, np.ndarray]:
        """Reads the images with these keys, as squares: uint8 RGB (H, W, 3)."""
        return {key: resize_square(read_image_file(self.files[key]), self.side) for key in keys}


def evaluate_folder(
    matched: MatchedFolder, how: Evaluation, advance: Advance = lambda done: None
) -> tuple[dict[str, Any], FolderSamples]:
    """Returns the content of metrics.json, and the judged images.

    Raises UserError for an image that cannot be read, and for models that cannot be loaded.
    """
    size = how.size or find_common_side(matched.images)
    models = load_feature_models(how.clip, how.features, how.device)
    own = cast("ClipScorer", models[OWN_CLIP])
    judges = load_judges(how.judges, own, how.device)
    auditor, audited = ImageAuditor(how.audit, own), list[dict[str, Any]]()
    how.features_folder.mkdir(parents=True, exist_ok=True)
    samples: list[JudgedSample] = []
    verdicts: list[dict[str, Any]] = []
    tables: list[Path] = []
    for number, part in enumerate(_group_prompts(matched.images)):
        images = [read_image_file(item.path) for item in part]
        squares = [resize_square(image, size) for image in images]
        samples += _score(part, squares, own, matched.prompted)
        verdicts += say_verdicts(judges, images, [item.prompt.prompt for item in part])
        pairs = zip(part, images, strict=True)
        audited += auditor.measure([image for item, image in pairs if item.index == 0]) if how.audit.looks else []
        first = [(_name(item), square, item.prompt.prompt) for item, square in zip(part, squares, strict=True)]
        first = [entry for item, entry in zip(part, first, strict=True) if item.index == 0]
        tables += _write_features(how, f"{SAMPLE_SET}-{number}", models, SAMPLE_SET, first, matched.prompted)
        advance(len(samples))
    if how.reference is not None:
        source = how.reference
        images_read = source.read(size)
        tables += _write_features(how, source.set_name, models, source.set_name, images_read, source.captioned)
    collected = collect_features([str(path) for path in tables], how.subsample, size)
    judged = FolderSamples(
        samples if matched.prompted else [],
        features=_describe_features(how, collected, size),
        judges=how.judges,
        verdicts=read_verdicts(verdicts),
        copies=_search_copies(how, matched.images, own, size),
        files={(item.prompt.prompt, item.seed, item.index): item.path for item in matched.images},
        side=size,
        audit=how.audit,
        audited=audited,
    )
    metrics = compute_metrics(judged, how.identity, how.clip)
    metrics["images"] = metrics["images"] or len({(item.prompt.prompt, item.seed) for item in matched.images})
    return metrics, replace(judged, samples=samples)


def read_image_file(path: Path) -> np.ndarray:
    """Returns the pixels of an image file, uint8 RGB (H, W, 3); raises UserError for one that cannot be read."""
    try:
        return decode_rgb(path.read_bytes())
    except (OSError, ImageError) as error:
        raise UserError(f"{path}: not an image that can be read ({error}); delete or replace it") from error


def find_common_side(images: Sequence[FolderImage]) -> int:
    """Returns the most frequent length of the shorter side in pixels; of equally frequent ones the smallest."""
    sides: Counter[int] = Counter()
    for item in images:
        try:
            with Image.open(item.path) as image:
                sides[min(image.size)] += 1
        except OSError as error:
            raise UserError(f"{item.path}: not an image that can be read ({error}); delete or replace it") from error
    return min(sides, key=lambda side: (-sides[side], side))


# ---------------------------------------------------------------------------------------------- samples


def _group_prompts(images: Sequence[FolderImage], least: int = 64) -> Iterator[list[FolderImage]]:
    """Yields images in groups of ``least`` or a few more: all candidates of a prompt and seed are in one group."""
    order: dict[tuple[str, int], list[FolderImage]] = {}
    for item in images:
        order.setdefault((item.prompt.prompt, item.seed), []).append(item)
    part: list[FolderImage] = []
    for candidates in order.values():
        part += sorted(candidates, key=lambda item: item.index)
        if len(part) >= least:
            yield part
            part = []
    if part:
        yield part


def _score(
    part: Sequence[FolderImage], squares: Sequence[np.ndarray], own: ClipScorer, prompted: bool
) -> list[JudgedSample]:
    prompts = [item.prompt.prompt for item in part]
    scores = own.similarity(squares, prompts) if prompted else np.full(len(part), np.nan, np.float32)
    best: dict[tuple[str, int], int] = {}
    for number, item in enumerate(part):
        key = (item.prompt.prompt, item.seed)
        if key not in best or scores[number] > scores[best[key]]:
            best[key] = number
    rows = zip(part, squares, scores.tolist(), strict=True)
    return [
        replace(
            judge_sample(
                Image.fromarray(square),
                item.prompt,
                score,
                seed=item.seed,
                index=item.index,
                chosen=best[item.prompt.prompt, item.seed] == number,
            ),
            png=None,
        )
        for number, (item, square, score) in enumerate(rows)
    ]


def _name(item: FolderImage) -> str:
    return f"{item.prompt.prompt}|{item.seed}"


# ---------------------------------------------------------------------------------------------- features


def _write_features(
    how: Evaluation,
    name: str,
    models: Mapping[str, FeatureExtractor],
    set_name: str,
    images: Iterable[NamedImage],
    captioned: bool,
) -> list[Path]:
    paths = []
    for number, table in enumerate(tabulate_features(models, set_name, images, captioned)):
        paths.append(how.features_folder / f"{name}-{shard_name(number, 'parquet')}")
        write_table(table, paths[-1], "features")
    return paths


def _describe_features(how: Evaluation, collected: CollectedFeatures, size: int) -> MeasuredFeatures | None:
    if how.reference is None:
        return None
    return MeasuredFeatures(
        spaces=[describe_space(config, how.identity) for config in how.features],
        reference=how.reference.set_name,
        reference_name=how.reference.name,
        size=size,
        sets=collected.sets,
        pairs=collected.pairs,
        subsample=how.subsample,
    )


# ---------------------------------------------------------------------------------------------- near copies


def _search_copies(how: Evaluation, images: Sequence[FolderImage], own: ClipScorer, size: int) -> CopySearch | None:
    if how.training is None:
        return None
    limit = how.memorisation.queries
    first = ((_name(item), item) for item in images if item.index == 0)
    chosen = Subsample(limit)
    for name, item in first:
        chosen.add([name], [(name, item)])
    pixels = {name: resize_square(read_image_file(item.path), size) for name, item in chosen.taken()}
    if how.held_out is not None:
        held_out = _make_queries(_choose(how.held_out.read(size), limit), own)
        held_out_name = how.held_out.name
    else:
        held_out = _make_queries(_choose(how.training.read(size), min(limit, len(images))), own)
        held_out = replace(held_out, own=held_out.ids)
        held_out_name = "training images, each compared with the others,"
    found = [NearestImages(queries, how.memorisation.neighbours) for queries in (_make_queries(pixels, own), held_out)]
    count = search_images(found, how.training.read(size), own)
    return CopySearch(
        samples=found[0].nearest(),
        held_out=found[1].nearest(),
        held_out_name=held_out_name,
        training_images=count,
        threshold=how.memorisation.threshold,
        features=f"CLIP ({how.identity.name})",
        size=size,
    )


def _choose(images: Iterator[NamedImage], limit: int) -> dict[str, np.ndarray]:
    """Returns at most ``limit`` images by name, chosen by the hashes of their names."""
    chosen = Subsample(limit)
    for name, pixels, _ in images:
        chosen.add([name], [(name, pixels)])
    return dict(chosen.taken())


def _make_queries(pixels: Mapping[str, np.ndarray], own: ClipScorer) -> Queries:
    names = sorted(pixels)
    images = [pixels[name] for name in names]
    return Queries(names, own.image_features(images), images)
