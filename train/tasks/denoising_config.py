"""Config of what trains a denoiser of the cascade. Light: loads no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config
from train.config import TrainConfig
from train.diffusion.config import DiffusionConfig
from train.loader.config import LoaderConfig
from train.models.backbones import backbone_name, denoiser_config, find_backbone
from train.models.base import DenoiserConfig


class DenoisingStageConfig(Config):
    """The network and its diffusion process."""

    trains: ClassVar[str]  # the networks of this task, see `train.models.base.Backbone`
    learns_variance: ClassVar[bool] = True  # where the network predicts one

    model: str = Field(description="preset of the network, see docs/models.md")
    model_overrides: dict[str, Any] = Field(default_factory=dict, description="fields of the preset to replace")
    diffusion: DiffusionConfig = Field(default=DiffusionConfig(), description="noise, prediction, loss weighting")
    text_drop: float = Field(
        0.1,
        ge=0,
        le=1,
        description="share of samples trained without text, for classifier-free guidance (2.2); 1: it never has text",
    )

    def denoiser_config(self, text_dim: int | None = None, image_dim: int | None = None) -> DenoiserConfig:
        """Returns the network's config: the preset, its overrides, and widths of its inputs as far as they are known.

        ``text_dim``: of the text encoder's output; ``image_dim``: of CLIP's embeddings.
        """
        widths = {"text_dim": text_dim} if text_dim is not None else {}
        return denoiser_config(self.model, self.model_overrides | widths)

    def reads_text(self) -> bool:
        """Returns whether the network was ever trained with text."""
        return self.text_drop < 1

    def stored_sizes(self) -> tuple[int, ...]:
        """Returns the resolutions of the packed images that training reads."""
        return ()

    def vector_columns(self) -> tuple[str, ...]:
        """Returns the pack's columns of vectors that training reads."""
        return ()

    def local_files(self) -> Mapping[str, str]:
        """Returns the files, by key, that training reads besides its data and its first weights."""
        return {}

    def move_files(self, place: Callable[[str], str]) -> Self:
        """Returns the config with ``place`` of each of `local_files` in its place."""
        return self

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        config, chosen = self.denoiser_config(), self.diffusion.model_dump(mode="json")
        task = find_backbone(backbone_name(config)).task
        if task != self.trains:
            raise ValueError(f"model={self.model} is trained by task: {task}; set it, or take another model")
        for name, value in config.fixed_diffusion().items():
            if chosen[name] != value:
                raise ValueError(
                    f"diffusion.{name}={chosen[name]}: model={self.model} has learned {value}; set it to that"
                )
        return self

    @model_validator(mode="after")
    def _check_variance(self) -> Self:
        config, weight = self.denoiser_config(), self.diffusion.variance_weight
        if weight and not config.learned_variance:
            raise ValueError(
                f"diffusion.variance_weight={weight}: model={self.model} predicts no variance; set "
                "model_overrides.learned_variance to true, or variance_weight to 0"
            )
        # A network that brings its own process has learned its variance before.
        if config.learned_variance and self.learns_variance and not weight and not config.fixed_diffusion():
            raise ValueError(
                f"model_overrides.learned_variance=true: nothing trains the variance of model={self.model}; set "
                "diffusion.variance_weight to 0.001"
            )
        return self


class CascadeTrainingConfig(TrainConfig):
    """A training of a member of the cascade: keys of the loop and of the loader."""

    data: LoaderConfig = Field(LoaderConfig(), description="how training data is read")
