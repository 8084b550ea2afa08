"""Feature models: their names, files, and what a figure says of the space that it was measured in.

Light: loads no torch, but to check an open_clip name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataprep.io.errors import UserError
from dataprep.io.storage import exists, join, list_files, read_json, sha256_file
from eval.metrics.config import INCEPTION, OWN_CLIP, FeaturesConfig

# The FID is defined on Inception's weights of 2015-12-05, which torch-fidelity publishes in a file whose sha256 begins
# so. A Frechet distance on any other weights cannot be compared with published FIDs.
FID_WEIGHTS, FID = "6726825d", "fid"
INCEPTION_SIZE = 299
CLIP_FILE, OPEN_CLIP_FILE, TRANSFORMERS_FILE = "clip.json", "open_clip_config.json", "config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
LOCAL = "local-dir:"  # open_clip's prefix of a folder
DIGEST = 16  # hex digits


@dataclass(frozen=True)
class ClipIdentity:
    """The CLIP that scores: its name for people, and ``weights``, a digest of its files or an open_clip tag."""

    name: str
    weights: str
    resolution: int | None


@dataclass(frozen=True)
class FeatureSpace:
    """What a distance is measured in. Every figure in metrics.json says it.

    Attributes:
        key: name in metrics.json, as in ``fd_<key>``.
        name: name of the Frechet distance.
        model: description for people.
        weights: 16 hex digits of the SHA-256 of the weights' files, or the tag under which open_clip publishes them.
        resolution: height and width of the model's input in pixels; None if its config does not tell.
        unit_length: features are unit vectors, so that distances are bounded: CMMD takes the place of KID.
    """

    key: str
    name: str
    model: str
    weights: str
    resolution: int | None
    unit_length: bool

    @property
    def cmmd_name(self) -> str:
        """Name of the CMMD in metrics.json."""
        return f"cmmd_{self.key}"


def check_feature_models(configs: Sequence[FeaturesConfig]) -> list[str]:
    """Returns the local files of the feature models; raises UserError for a name or file that cannot be loaded."""
    files = []
    for config in configs:
        if config.model == INCEPTION:
            if config.pretrained is None or not Path(config.pretrained).is_file():
                raise UserError(
                    f"evaluate.features: inception's pretrained={config.pretrained} is no local file; give its "
                    "weights, such as weights-inception-2015-12-05-6726825d.pth"
                )
        elif is_transformers_folder(config.model):
            read_preprocessing(config.model)
        elif config.model != OWN_CLIP:
            from eval.clip.scorer import check_spec

            try:
                check_spec(config.model, config.pretrained)
            except UserError as error:
                raise UserError(str(error).replace("clip.", "evaluate.features.", 1)) from error
        files += list_weight_files(config.model, config.pretrained)
    if len({config.key for config in configs}) < len(configs):
        raise UserError("evaluate.features: two models have the same name; leave one out")
    return files


def list_weight_files(*names: str | None) -> list[str]:
    """Returns the files that ``names`` are, and those in folders that they are; none for other names."""
    files = []
    for name in names:
        place = (name or "").removeprefix(LOCAL)
        if place and Path(place).exists():
            files += [place] if Path(place).is_file() else [join(place, part) for part in list_files(place)]
    return files


def digest_weights(*names: str | None) -> str:
    """Returns 16 hex digits over the content of the files of ``names``; without files, the last name itself: a tag."""
    files = list_weight_files(*names)
    if not files:
        return next((name for name in reversed(names) if name), "")
    total = hashlib.sha256()
    for path in files:
        total.update(sha256_file(path)[0].encode())
    return total.hexdigest()[:DIGEST]


# ---------------------------------------------------------------------------------------------- spaces


def describe_space(config: FeaturesConfig, clip: ClipIdentity) -> FeatureSpace:
    """Returns what figures say of a feature space; ``clip`` is the CLIP that scores."""
    name = distance_name(config)
    if config.model == OWN_CLIP:
        model = f"image tower of the scoring CLIP ({clip.name}), unit length"
        return FeatureSpace(config.key, name, model, clip.weights, clip.resolution, True)
    weights = digest_weights(config.model, config.pretrained)
    if config.model == INCEPTION:
        version = "2015-12-05, pool3" if is_fid(config) else f"weights of {Path(str(config.pretrained)).name}"
        return FeatureSpace(config.key, name, f"Inception v3 ({version})", weights, INCEPTION_SIZE, False)
    if is_transformers_folder(config.model):
        kind = read_json(join(config.model, TRANSFORMERS_FILE))["model_type"]
        model = f"{kind} of transformers ({Path(config.model).name})"
        return FeatureSpace(config.key, name, model, weights, read_preprocessing(config.model).resolution, False)
    model = f"image tower of open_clip's {config.model} ({config.pretrained}), unit length"
    return FeatureSpace(config.key, name, model, weights, find_clip_resolution(config.model), True)


def find_clip_resolution(model: str) -> int | None:
    """Returns the input size of a CLIP: a folder that the clip stage exported, or one of open_clip; None if unknown."""
    if exists(join(model, CLIP_FILE)):
        return _to_side(read_json(join(model, CLIP_FILE)).get("model", {}).get("image_size"))
    folder = model.removeprefix(LOCAL)
    if (Path(folder) / OPEN_CLIP_FILE).is_file():
        found = read_json(join(folder, OPEN_CLIP_FILE)).get("model_cfg", {})
    elif ":" in model or "/" in model:
        return None
    else:
        from dataprep.io.model_imports import import_open_clip

        found = import_open_clip().get_model_config(model) or {}
    return _to_side(found.get("vision_cfg", {}).get("image_size"))


def distance_name(config: FeaturesConfig) -> str:
    """Returns the name of the Frechet distance: "fid" on the weights that define the FID, else ``fd_<key>``."""
    return FID if is_fid(config) else f"fd_{config.key}"


def is_fid(config: FeaturesConfig) -> bool:
    """Whether ``config`` is Inception with the weights that define the FID, by the file's hash."""
    return (
        config.model == INCEPTION
        and config.pretrained is not None
        and sha256_file(config.pretrained)[0].startswith(FID_WEIGHTS)
    )


# ---------------------------------------------------------------------------------------------- transformers


@dataclass(frozen=True)
class Preprocessing:
    """How a model of transformers takes images: squares of ``resolution`` pixels, normalised per channel."""

    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_transformers_folder(name: str) -> bool:
    """Whether ``name`` is a local folder in the layout of transformers, such as DINOv2's."""
    path = Path(name) / TRANSFORMERS_FILE
    return path.is_file() and "model_type" in _read_object(path)


def read_preprocessing(folder: str) -> Preprocessing:
    """Returns the preprocessing of a model of transformers; raises UserError where its folder does not tell it."""
    path = Path(folder) / PREPROCESSOR_FILE
    if not path.is_file():
        raise UserError(
            f"evaluate.features: {folder} has no {PREPROCESSOR_FILE}, which says how images are normalised; copy it "
            "from where the model was published"
        )
    found = _read_object(path)
    side = _to_side(found.get("crop_size")) or _to_side(found.get("size"))
    mean, std = (found.get(f"image_{name}") for name in ("mean", "std"))
    if side is None or not mean or not std or len(mean) != 3 or len(std) != 3:
        raise UserError(f"evaluate.features: {path}: lacks size, image_mean or image_std; take the published file")
    return Preprocessing(side, tuple(mean), tuple(std))


def _read_object(path: Path) -> dict[str, Any]:
    try:
        found = read_json(str(path))
    except ValueError as error:
        raise UserError(f"evaluate.features: {path}: not JSON ({error}); copy the file again") from error
    return found if isinstance(found, dict) else {}


def _to_side(value: Any) -> int | None:
    """Returns the side of a size in any of the ways that configs write it."""
    if isinstance(value, Mapping):
        return next((_to_side(value[key]) for key in ("height", "shortest_edge", "longest_edge") if key in value), None)
    if isinstance(value, list | tuple) and value:
        return _to_side(value[0])
    return value if isinstance(value, int) else None
