"""From finished training stages to a cascade that samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from eval.sampling.config import CascadeConfig, SamplingConfig, StageEntry
from pipeline.stages.text_encoder import encoder_location
from pipeline.stages.train import TrainStageConfig
from pipeline.store.artifact import Artifact

if TYPE_CHECKING:
    from eval.sampling.cascade import Cascade


def trained_cascade(
    trained: Mapping[str, Artifact], sampling: Mapping[str, SamplingConfig], encoder: Artifact, **more: Any
) -> CascadeConfig:
    """Returns the cascade of finished training stages by name, lowest resolution first.

    Args:
        sampling: sampler settings by stage name; stages that it lacks have the defaults.
        more: other fields of `CascadeConfig`.
    """
    stages = []
    for name, artifact in trained.items():
        config = TrainStageConfig.from_manifest(artifact.manifest).train
        stages.append(
            StageEntry(
                name=name,
                resolution=config.resolution,
                low_resolution=config.low_resolution,
                path=artifact.path("export"),
                sampling=sampling.get(name, SamplingConfig()),
            )
        )
    return CascadeConfig(stages=stages, encoder=encoder_location(encoder), **more)


def build_cascade(config: CascadeConfig, device: str = "cpu") -> Cascade:
    """Loads the cascade on ``device``; folders in object stores are copied to this machine first."""
    from eval.sampling.cascade import Cascade

    return Cascade.from_config(copy_parts_here(config), device)


def copy_parts_here(config: CascadeConfig) -> CascadeConfig:
    """Returns the cascade with folders in object stores replaced by copies on this machine."""
    stages = [stage.model_copy(update={"path": storage.local_folder(stage.path)}) for stage in config.stages]
    clip = storage.local_folder(config.clip) if config.clip else None
    return config.model_copy(update={"stages": stages, "encoder": storage.local_folder(config.encoder), "clip": clip})
