"""Config of the wrapper of diffusers' UNet2DConditionModel. Light: loads neither torch nor diffusers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config
from train.beta_schedule import BetaSchedule
from train.models.base import DenoiserConfig

SUPPORTED_CONDITIONS = ("text_BLD", "text_mask_BL", "text_keep_B", "lowres_BCHW", "lowres_log_snr_B")
IMAGE_CHANNELS = 3
TEXT_TOKENS = 77  # of DeepFloyd IF

Activation = Literal["silu", "swish", "mish", "gelu", "relu"]
Numbers = Annotated[tuple[int, ...], Field(strict=False)]  # one per level
Switches = Annotated[tuple[bool, ...], Field(strict=False)]
BlockType = Literal[
    "DownBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D", "CrossAttnDownBlock2D",
    "UpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D", "CrossAttnUpBlock2D",
]  # fmt: skip


class UNet2DSettings(Config):
    """Keys and values of diffusers' ``unet/config.json`` that are supported, with diffusers' names and defaults.

    A key with one possible value is one whose other values are refused.
    """

    sample_size: int | None = Field(default=None, ge=1, description="height and width of the images")
    in_channels: Literal[3, 6] = Field(description="3: a base model; 6: the low-resolution image beside the noisy one")
    out_channels: Literal[3, 6] = Field(description="3: the prediction; 6: a learned variance beside it")
    center_input_sample: Literal[False] = False
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[BlockType, ...] = Field(strict=False)
    mid_block_type: Literal["UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"] = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[BlockType, ...] = Field(strict=False)
    only_cross_attention: bool | Switches = False
    block_out_channels: tuple[int, ...] = Field(strict=False)
    layers_per_block: int | Numbers = 2
    downsample_padding: int = 1
    mid_block_scale_factor: float = 1
    dropout: float = 0.0
    act_fn: Activation = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    transformer_layers_per_block: int | Numbers = 1
    reverse_transformer_layers_per_block: None = None
    encoder_hid_dim: int | None = Field(default=None, description="width of the text encoder's output")
    encoder_hid_dim_type: Literal["text_proj"] | None = None
    attention_head_dim: int | Numbers = 8
    num_attention_heads: None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: Literal["timestep"] | None = Field(
        default=None, description="timestep: of a super-resolution model, the noise level of its low-resolution image"
    )
    addition_embed_type: Literal["text"] | None = Field(default=None, description="text: attention-pooled text")
    addition_time_embed_dim: None = None
    num_class_embeds: None = None
    upcast_attention: bool = False
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: Activation | None = None
    timestep_post_act: Activation | None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: None = None
    attention_type: Literal["default"] = "default"
    class_embeddings_concat: Literal[False] = False
    mid_block_only_cross_attention: bool | None = None
    cross_attention_norm: Literal["layer_norm", "group_norm"] | None = None
    addition_embed_type_num_heads: int = 64

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if (self.in_channels == 2 * IMAGE_CHANNELS) != (self.class_embed_type == "timestep"):
            raise ValueError(
                f"in_channels={self.in_channels} with class_embed_type={self.class_embed_type}: a super-resolution "
                "model has 6 and 'timestep', a base model 3 and null"
            )
        return self

    @property
    def text_width(self) -> int:
        """Width of the text encoder's output."""
        return self.encoder_hid_dim or self.cross_attention_dim


class DiffusersUNetConfig(DenoiserConfig):
    """A UNet2DConditionModel on pixels, and the noise schedules whose steps it takes."""

    unet: UNet2DSettings = Field(description="content of unet/config.json")
    betas: BetaSchedule = Field(default=BetaSchedule(), description="steps that the network learned")
    lowres_betas: BetaSchedule = Field(
        default=BetaSchedule(), description="steps of the noise of its low-resolution image"
    )
    text_tokens: int = Field(default=TEXT_TOKENS, ge=1, description="tokens per caption, padding included")

    @model_validator(mode="before")
    @classmethod
    def _take_sizes(cls, data: Any) -> Any:
        """Takes `lowres`, `text_dim` and `learned_variance` from the network's own keys where they are not given."""
        if not isinstance(data, dict) or not isinstance(data.get("unet"), dict | UNet2DSettings):
            return data
        unet = data["unet"] if isinstance(data["unet"], UNet2DSettings) else UNet2DSettings(**data["unet"])
        own = {"lowres": unet.in_channels == 2 * IMAGE_CHANNELS, "text_dim": unet.text_width}
        own["learned_variance"] = unet.out_channels == 2 * IMAGE_CHANNELS
        return own | data

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        if self.text_dim != self.unet.text_width:
            raise ValueError(
                f"text_dim={self.text_dim}: this network takes text embeddings that are {self.unet.text_width} wide; "
                "use its own text encoder"
            )
        if self.image_channels != IMAGE_CHANNELS or self.lowres != (self.unet.in_channels == 2 * IMAGE_CHANNELS):
            raise ValueError(
                f"image_channels={self.image_channels}, lowres={self.lowres} do not fit unet.in_channels="
                f"{self.unet.in_channels}; leave them out"
            )
        if self.learned_variance != (self.unet.out_channels == 2 * IMAGE_CHANNELS):
            raise ValueError(
                f"learned_variance={self.learned_variance} does not fit unet.out_channels={self.unet.out_channels}; "
                "leave it out"
            )
        if self.lowres_residual:
            raise ValueError("lowres_residual is not supported by diffusers_unet; leave it out")
        return self

    def size_multiple(self) -> int:
        """Returns 2 to the number of down-samplings."""
        return int(2 ** (len(self.unet.block_out_channels) - 1))

    def needs_whole_images(self) -> str | None:
        """Names self-attention; a network whose attention reads the text alone has none."""
        only = self.unet.only_cross_attention
        middle = self.unet.mid_block_only_cross_attention
        if middle is None:
            middle = only is True
        return None if middle and (only is True or (only is not False and all(only))) else "self-attention"

    def caption_tokens(self) -> int | None:
        """Returns `text_tokens`: the network reads the text encoder's output at padding too."""
        return self.text_tokens

    def fixed_diffusion(self) -> dict[str, Any]:
        """Returns the noise schedules that the network learned, which training has to keep."""
        fixed: dict[str, Any] = {"schedule": "discrete", "betas": self.betas.model_dump(mode="json")}
        if self.lowres:
            fixed |= {"lowres_schedule": "discrete", "lowres_betas": self.lowres_betas.model_dump(mode="json")}
        return fixed
