"""Registry of how a stage of a cascade makes its images, by the task that trained its network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from eval.sampling.code_sampler import sample_codes
from eval.sampling.config import SamplingConfig
from eval.sampling.stage_sampler import LoadedStage, SamplerInputs, sample_stage
from train.models.backbones import backbone_name, find_backbone

# (stage, settings, inputs, seeds, (height, width)) -> images (B, C, H, W) in [-1, 1]
Generate = Callable[
    [LoadedStage, SamplingConfig, SamplerInputs, Sequence[Sequence[int]], tuple[int, int] | None], Tensor
]
GENERATORS: dict[str, Generate] = {
    "diffusion": sample_stage,
    "refinement": sample_codes,
}


def generate(
    stage: LoadedStage,
    settings: SamplingConfig,
    inputs: SamplerInputs,
    seeds: Sequence[Sequence[int]],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """Samples a batch with any stage; the arguments are those of `eval.sampling.stage_sampler.sample_stage`."""
    task = find_backbone(backbone_name(stage.model.config)).task
    return GENERATORS[task](stage, settings, inputs, seeds, size)
