"""Config of the `diffusion` task. Light: loads no torch.

Sections are of arXiv 2205.11487.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.hub import HUB_PREFIX
from dataprep.io.pack_format import IMAGE_FEATURES, pixels_column
from train.models.backbones import backbone_name, denoiser_config, find_backbone, is_preset, read_folder_stage
from train.models.base import DenoiserConfig
from train.models.perceptual_config import PerceptualConfig
from train.tasks.adversarial_config import AdversarialConfig
from train.tasks.denoising_config import CascadeTrainingConfig, DenoisingStageConfig

# Above this level less of the small image than of the noise is left in a network's low-resolution input.
MAX_RESIDUAL_LEVEL = 0.5
UNKNOWN_WIDTH = 512  # of image embeddings, until CLIP is known
SMALLEST_SIDE = 16  # of the images that VGG16 compares


class DiffusionStageConfig(DenoisingStageConfig):
    """What one cascade stage learns."""

    trains: ClassVar[str] = "diffusion"

    resolution: int = Field(description="height and width of the generated images")
    low_resolution: int | None = Field(None, ge=1, description="resolution of the input image; None: the base stage")
    crop: int | None = Field(
        None,
        ge=1,
        description="train on random crops of this size; None: on whole images. For models without self-attention",
    )
    min_original: int = Field(
        0, ge=0, description="train on images whose original had at least this shorter side; the others were enlarged"
    )
    model: str = Field(
        "tiny-base", description="preset of the network, see docs/models.md; or a stage's folder in diffusers' layout"
    )
    image_embedding: bool = Field(
        False, description="condition on the CLIP embedding of the image, which a stage of task: prior predicts"
    )
    image_drop: float = Field(
        0.1, ge=0, le=1, description="share of samples trained without image embedding, for classifier-free guidance"
    )
    image_noise: float = Field(
        0.0,
        ge=0,
        description="length of the noise added to image embeddings, which have length 1, in training and validation: "
        "the prior's are not exact either, and variations of an image vary more",
    )
    perceptual: PerceptualConfig | None = Field(None, description="a perceptual term of the loss; None: there is none")
    token_drop: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of caption tokens hidden in training, so that each word is learned without the others too",
    )

    adversarial: AdversarialConfig | None = Field(
        None, description="a discriminator of what a super-resolution stage predicts; None: the loss alone counts"
    )

    def denoiser_config(self, text_dim: int | None = None, image_dim: int | None = None) -> DenoiserConfig:
        """As `DenoisingStageConfig.denoiser_config`; the width of image embeddings is part of it if it takes them."""
        widths = {} if text_dim is None else {"text_dim": text_dim}
        if self.image_embedding:
            widths |= {"image_embedding_dim": image_dim or UNKNOWN_WIDTH}
        return denoiser_config(self.model, self.model_overrides | widths)

    def size_multiple(self) -> int:
        """Returns the number that divides the height and width of every valid image."""
        return self.denoiser_config().size_multiple()

    def side_divisors(self) -> dict[str, int]:
        """Returns the numbers that divide height and width of every image to train on, by the key that needs them."""
        multiple = self.size_multiple()
        half = {f"half_size_steps={self.half_size_steps}": 2 * multiple} if self.half_size_steps else {}
        judged = self.adversarial.side_divisors() if self.adversarial is not None else {}
        return {f"model={self.model}": multiple} | half | judged

    def stored_sizes(self) -> tuple[int, ...]:
        """Returns the resolutions of the packed images that training reads: its own, then the low one."""
        return (self.resolution,) if self.low_resolution is None else (self.resolution, self.low_resolution)

    def pixel_columns(self) -> tuple[str, ...]:
        """Returns the pack columns that the stage reads: its own resolution, then the low one."""
        return tuple(pixels_column(size) for size in self.stored_sizes())

    def vector_columns(self) -> tuple[str, ...]:
        """Returns the pack's column of image embeddings, of a stage that is conditioned on them."""
        return (IMAGE_FEATURES,) if self.image_embedding else ()

    def local_files(self) -> Mapping[str, str]:
        """Returns the files of the perceptual term by key."""
        if self.perceptual is None:
            return {}
        files = {"weights": self.perceptual.weights, "lpips": self.perceptual.lpips}
        return {f"perceptual.{name}": path for name, path in files.items() if path is not None}

    def move_files(self, place: Callable[[str], str]) -> Self:
        """As `DenoisingStageConfig.move_files`."""
        if (given := self.perceptual) is None:
            return self
        moved = {key.removeprefix("perceptual."): place(path) for key, path in self.local_files().items()}
        return self.model_copy(update={"perceptual": given.model_copy(update=moved)})

    half_size_steps: int = Field(
        0,
        ge=0,
        description="the first so many updates train on images of half the size, at a quarter of the cost; of a base",
    )

    @model_validator(mode="before")
    @classmethod
    def _read_folder(cls, data: Any) -> Any:
        """Replaces the folder of another library's stage by what it says: network and diffusion process.

        So the config itself holds all that training needs, on every machine.
        """
        model = data.get("model") if isinstance(data, dict) else None
        if isinstance(model, str) and model.startswith(HUB_PREFIX):
            name = model.removeprefix(HUB_PREFIX)
            raise ValueError(f"model={model}: download it (`hf download {name}`) and give the folder")
        if not isinstance(model, str) or is_preset(model) or (stage := read_folder_stage(model)) is None:
            return data
        overrides = stage.model.model_dump(mode="json") | dict(data.get("model_overrides") or {})
        given = data.get("diffusion") or {}
        diffusion = dict(stage.diffusion) | given if isinstance(given, dict) else given
        return data | {"model": stage.preset, "model_overrides": overrides, "diffusion": diffusion}

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if self.model_overrides.get("image_embedding_dim"):  # a folder of diffusers says 0
            raise ValueError("model_overrides.image_embedding_dim: that is CLIP's width; set image_embedding: true")
        if self.image_noise and not self.image_embedding:
            raise ValueError(f"image_noise={self.image_noise:g}: without an embedding; set image_embedding: true, or 0")
        backbone = backbone_name(self.denoiser_config())
        if self.image_embedding and "image_embedding_BE" not in find_backbone(backbone).conditions:
            raise ValueError(
                f"image_embedding=true: model={self.model} of backbone {backbone} takes none; set it to false, or take "
                "another model"
            )
        return self

    @model_validator(mode="after")
    def _check_stage(self) -> Self:
        config = self.denoiser_config()
        side = self.crop or self.resolution
        if side > self.resolution:
            raise ValueError(f"crop={self.crop} is larger than resolution={self.resolution}; take a smaller crop")
        if side % config.size_multiple():
            raise ValueError(
                f"model={self.model} needs sizes that are multiples of {config.size_multiple()}, "
                f"not {side}; change resolution or crop"
            )
        if config.lowres != (self.low_resolution is not None):
            kind = "a super-resolution" if self.low_resolution else "a base"
            raise ValueError(f"model={self.model} is not {kind} model; low_resolution={self.low_resolution} needs one")
        if config.lowres_residual and self.diffusion.prediction != "x0":
            raise ValueError(
                f"model={self.model} predicts the difference to the resized image: set diffusion.prediction to x0, "
                f"not {self.diffusion.prediction}"
            )
        level = self.diffusion.lowres_max_level
        if config.lowres_residual and level > MAX_RESIDUAL_LEVEL:
            raise ValueError(
                f"diffusion.lowres_max_level={level}: model={self.model} adds its output to the small image as it is "
                f"given, with its noise, so it cannot begin as that image above {MAX_RESIDUAL_LEVEL}; set it to 0.3"
            )
        if self.half_size_steps and (self.low_resolution or side % (2 * config.size_multiple())):
            raise ValueError(
                f"half_size_steps={self.half_size_steps}: is for a base whose resolution, halved, is a multiple of "
                f"{config.size_multiple()} for model={self.model}; set it to 0"
            )
        if self.token_drop and config.caption_tokens() is not None:
            raise ValueError(
                f"token_drop={self.token_drop}: model={self.model} reads padding, so a hidden token is not as if it "
                "were missing; set it to 0"
            )
        part = config.needs_whole_images()
        if self.crop is not None and self.crop < self.resolution and part:
            raise ValueError(
                f"crop={self.crop}: model={self.model} has {part}, which is another on whole images, as they are "
                "sampled; leave crop out, or take a model without it (model_overrides, see docs/models.md)"
            )
        if self.low_resolution and self.resolution % self.low_resolution:
            raise ValueError(f"low_resolution={self.low_resolution} does not divide resolution={self.resolution}")
        return self

    @model_validator(mode="after")
    def _check_perceptual(self) -> Self:
        if self.perceptual is None:
            return self
        if self.diffusion.weighting == "elbo":
            raise ValueError("perceptual: weighting=elbo is a bound, whose loss is in bits; leave perceptual out")
        if (side := (self.crop or self.resolution) // (2 if self.half_size_steps else 1)) < SMALLEST_SIDE:
            raise ValueError(f"perceptual: VGG16 halves an image four times, {side} pixels are too few; leave it out")
        return self


class DiffusionTrainingConfig(DiffusionStageConfig, CascadeTrainingConfig):
    """One diffusion stage of the cascade: keys of the task, of the training loop and of the loader."""

    task: Literal["diffusion"] = Field("diffusion", description="a denoiser of images at one resolution")

    @model_validator(mode="after")
    def _check_adversarial(self) -> Self:
        if self.adversarial is None:
            return self
        if self.low_resolution is None:
            raise ValueError(
                "adversarial is for super-resolution: without a small image, what a base stage predicts at high noise "
                "is a blur that any discriminator tells from an image; leave it out"
            )
        if self.diffusion.prediction == "eps":
            raise ValueError(
                "adversarial judges the predicted image, which diffusion.prediction=eps gives with an error that grows "
                "without bound with the noise; set it to x0 or v"
            )
        self.adversarial.check(self.crop or self.resolution, self.steps)
        return self
