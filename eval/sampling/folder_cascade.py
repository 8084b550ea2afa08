"""A cascade of stages in the folder layout of another library, such as DeepFloyd IF's in diffusers' layout."""

from __future__ import annotations

from collections.abc import Sequence

from dataprep.io.errors import UserError
from dataprep.io.pipeline_folder import encoder_folders
from eval.sampling.config import CascadeConfig, SamplingConfig, StageEntry
from train.models.backbones import read_folder_stage
from train.models.base import FolderStage


def folder_cascade(folders: Sequence[str]) -> CascadeConfig:
    """Returns the cascade of local ``folders``, a stage each, the base first, with the text encoder of the base.

    Stages are named ``base`` and ``sr<resolution>``; their sampler settings are the library's defaults. Raises
    UserError for a folder that is none, is not supported, or does not follow the one before it.
    """
    from dataprep.text.encoder import find_variant  # imports torch

    stages = [_read(folder) for folder in folders]
    entries: list[StageEntry] = []
    for folder, stage in zip(folders, stages, strict=True):
        if stage.model.lowres != bool(entries):
            raise UserError(
                f"{folder}: a super-resolution stage cannot be the first; name the base, then --then this folder"
                if stage.model.lowres
                else f"--then {folder}: a base stage; only super-resolution stages follow"
            )
        low = entries[-1].resolution if entries else None
        if low is not None and stage.resolution % low:
            raise UserError(f"--then {folder}: {stage.resolution} pixels do not follow {low}; take another stage")
        entries.append(
            StageEntry(
                name="base" if low is None else f"sr{stage.resolution}",
                resolution=stage.resolution,
                low_resolution=low,
                path=folder,
                sampling=SamplingConfig(**stage.sampling),
            )
        )
    tokens = stages[0].model.caption_tokens()
    half = find_variant(encoder_folders(stages[0].encoder)[0]) is not None  # T5 overflows in float16
    return CascadeConfig(
        stages=entries,
        encoder=stages[0].encoder,
        encoder_dtype="bfloat16" if half else "float32",
        max_length=tokens or CascadeConfig.model_fields["max_length"].default,
        encoder_pad=tokens is not None,
        encoder_lowercase=True,
    )


def _read(folder: str) -> FolderStage:
    stage = read_folder_stage(folder)
    if stage is None:
        raise UserError(f"{folder}: not a stage in diffusers' layout (no model_index.json); name another folder")
    return stage
