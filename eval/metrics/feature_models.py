"""Names and files of feature models. Light: loads no torch, but to check an open_clip name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dataprep.io.errors import UserError
from dataprep.io.storage import join, list_files, sha256_file
from eval.metrics.config import INCEPTION, OWN_CLIP, FeaturesConfig

# The FID is defined on Inception's weights of 2015-12-05, which torch-fidelity publishes in a file whose sha256 begins
# so. A Frechet distance on any other weights cannot be compared with published FIDs.
FID_WEIGHTS, FID = "6726825d", "fid"


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
        elif config.model != OWN_CLIP:
            from eval.clip.scorer import check_spec

            try:
                check_spec(config.model, config.pretrained)
            except UserError as error:
                raise UserError(str(error).replace("clip.", "evaluate.features.", 1)) from error
        for name in (config.model, config.pretrained):
            if name and Path(name).exists():
                files += [name] if Path(name).is_file() else [join(name, part) for part in list_files(name)]
    if len({config.key for config in configs}) < len(configs):
        raise UserError("evaluate.features: two models have the same name; leave one out")
    return files


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


def describe_features(config: FeaturesConfig, clip_name: str) -> str:
    """Returns a description for the report; ``clip_name`` is the run's CLIP."""
    if config.model == OWN_CLIP:
        return f"image tower of the run's CLIP ({clip_name}), unit length"
    if config.model == INCEPTION:
        name = "2015-12-05, pool3" if is_fid(config) else f"weights of {Path(str(config.pretrained)).name}"
        return f"Inception v3 ({name})"
    return f"image tower of open_clip's {config.model} ({config.pretrained}), unit length"
