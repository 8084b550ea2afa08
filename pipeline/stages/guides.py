"""Weaker networks that guidance of a cascade's stages goes away from (autoguidance), as `sample.guides` names them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.config import check_same_process
from pipeline.stages.initial_weights import find_origin
from train.init_config import InitConfig
from train.initial_weights.base import read_settings

if TYPE_CHECKING:
    from pipeline.config import RunConfig

SETTINGS = "config.json"  # of an exported stage


def find_guides(guides: Mapping[str, str]) -> dict[str, str]:
    """Returns the folder of the network that each entry names, by cascade stage.

    Raises UserError where there is none, or it is no exported stage.
    """
    found = {}
    for name, source in guides.items():
        key = f"sample.guides.{name}"
        path = find_origin(InitConfig(source=source), f"train.{name}", key).path
        if "backbone" not in read_settings(path, SETTINGS):
            raise UserError(f"{key}={source}: no exported stage; name a run, RUN:STAGE, RUN@FINGERPRINT or an export")
        found[name] = path
    return found


def list_guide_files(config: RunConfig) -> list[str]:
    """Returns the files of the networks of `sample.guides`, after checking what they have learned."""
    files = []
    for name, folder in find_guides(config.sample.guides).items():
        what = f"sample.guides.{name}={config.sample.guides[name]}"
        check_same_process(
            what, config.cascade()[name].diffusion.model_dump(mode="json"), read_settings(folder, SETTINGS)["diffusion"]
        )
        files += [storage.join(folder, part) for part in sorted(storage.list_files(folder))]
    return files
