"""What a denoising network takes and gives, and how a backbone is described. Light: loads no torch.

Shape legend: B batch, C channels, H W height and width, L caption tokens, D text width, E embedding width, R regions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from pydantic import Field

from dataprep.io.config import Config

if TYPE_CHECKING:
    from torch import Tensor


ENCODED_TEXT = ("encoded_text_BTC", "encoded_mask_BT", "encoded_pooled_BE")  # fields of `Conditions`


class Conditions(NamedTuple):
    """Inputs of a denoiser besides the noisy image and its noise level; None: not given.

    A backbone declares the fields that it supports (`Backbone.conditions`) and refuses the others by name.
    """

    text_BLD: Tensor | None = None  # output of the text encoder, float
    text_mask_BL: Tensor | None = None  # bool, True at tokens, False at padding; None: no padding
    text_keep_B: Tensor | None = None  # bool, False: unconditional, as if there were no caption; None: all True
    pooled_text_BE: Tensor | None = None  # one vector per caption, such as CLIP's text embedding; zeros: none
    lowres_BCHW: Tensor | None = None  # low-resolution image, resized to H x W and noised
    lowres_log_snr_B: Tensor | None = None  # log-SNR of that noise
    image_embedding_BE: Tensor | None = None  # such as CLIP's image embedding, of unit length; zeros: none
    # What `TextEncodingDenoiser.encode_text` made of the text, in its place: the same in every call of a sampling.
    encoded_text_BTC: Tensor | None = None
    encoded_mask_BT: Tensor | None = None
    encoded_pooled_BE: Tensor | None = None
    region_masks_BRHW: Tensor | None = None  # float in [0, 1], one mask per region of the image
    region_text_BRE: Tensor | None = None  # one text vector per region

    def given(self) -> frozenset[str]:
        """Returns the names of the fields that are not None."""
        return frozenset(name for name, value in zip(self._fields, self, strict=True) if value is not None)


class DenoiserConfig(Config):
    """Config keys that every backbone has. Subclasses add their own."""

    image_channels: int = Field(default=3, ge=1, description="channels of the image")
    lowres: bool = Field(default=False, description="super-resolution: takes a low-resolution image")
    lowres_residual: bool = Field(
        default=False, description="predict the difference to the low-resolution image; for prediction x0"
    )
    text_dim: int = Field(default=128, ge=1, description="width of the text encoder's output")
    image_embedding_dim: int = Field(
        default=0, ge=0, description="width of the image embedding that it is conditioned on; 0: none"
    )
    learned_variance: bool = Field(
        default=False,
        description="also predict the variance of a sampler's steps; trained by diffusion.variance_weight",
    )

    def vector_widths(self) -> Mapping[str, int]:
        """Returns the widths of the vectors that the network takes, by their field of `Conditions`.

        A row of zeros stands for no vector.
        """
        return {"image_embedding_BE": self.image_embedding_dim} if self.image_embedding_dim else {}

    def output_channels(self) -> int:
        """Returns the channels of the network's output: the prediction, and behind it a learned variance."""
        return self.image_channels * (2 if self.learned_variance else 1)

    def size_multiple(self) -> int:
        """Returns the number that divides the height and width of every valid image."""
        raise NotImplementedError

    def needs_whole_images(self) -> str | None:
        """Returns the part that behaves differently on a crop than on a whole image, in words; None: there is none.

        A model with such a part is not trained on crops and then run on whole images.
        """
        return None

    def caption_tokens(self) -> int | None:
        """Returns the number of text tokens that the network takes, padding included; None: as many as a caption has.

        With a number the network is a `PaddedTextDenoiser`.
        """
        return None

    def fixed_diffusion(self) -> Mapping[str, Any]:
        """Returns the diffusion settings, as JSON by name, without which the network does not work; {}: any will do."""
        return {}


class Denoiser(Protocol):
    """A network that predicts eps, x0 or v (whichever it is trained for) from a noisy image."""

    @property
    def config(self) -> Any:
        """The `DenoiserConfig` that the network was built from."""

    def __call__(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns the prediction (B, C, H, W) for images noised to log(alpha^2 / sigma^2) = ``log_snr_B`` (B,).

        A network that learned the variance of its steps returns it beside the prediction, (B, 2C, H, W).
        Clean images lie in [-1, 1]; H and W are multiples of ``config.size_multiple()``. Raises ValueError for another
        size, for a missing condition, and for one that the backbone does not support.
        """

    def state_dict(self) -> dict[str, Any]:
        """Returns the weights by name."""


class PaddedTextDenoiser(Denoiser, Protocol):
    """A denoiser that reads the text encoder's output at padding too, and that for the empty text as no caption."""

    def set_empty_text(self, text_LD: Tensor) -> None:
        """Sets the text encoder's output (L, D), padding included, for the empty text."""


@runtime_checkable
class TextEncodingDenoiser(Protocol):
    """A denoiser whose part that reads the text alone can be computed once for many calls."""

    def encode_text(self, conditions: Conditions) -> Conditions:
        """Returns the conditions with the network's own features of the text in place of the text."""


@dataclass(frozen=True, kw_only=True)
class FolderStage:
    """A trained stage in the folder layout of another library, in this project's terms."""

    preset: str  # a preset of the class of `model`
    model: DenoiserConfig
    diffusion: Mapping[str, Any]  # settings of the diffusion process, as JSON by name
    sampling: Mapping[str, Any]  # sampler settings, as JSON by name
    resolution: int  # height and width of the images
    encoder: str  # folder of the text encoder


@dataclass(frozen=True)
class Backbone:
    """A family of denoising networks, as `train.models.backbones.BACKBONES` lists it."""

    config: type[DenoiserConfig]
    presets: Mapping[str, DenoiserConfig]  # names are unique over all backbones
    build: Callable[[Any], Any]  # config -> `Denoiser`, an nn.Module with fresh weights; imports torch on call
    conditions: Collection[str]  # supported fields of `Conditions`
    zero_at_start: str | None = None  # a weight that is zero until the first update: detects untrained networks
    task: str = "diffusion"  # that trains it, an entry of `train.tasks.registry.TASKS`
    # What the network takes in place of noisy images: (config, batch, pixels per side) -> tensor; None: noisy images.
    make_input: Callable[[Any, int, int], Tensor] | None = None
    # Of another library's folder layout: reads the stage's description (None: a folder of another kind), loads the
    # network that it describes, and downloads a stage that a URL of a hub names (None: another path).
    read_folder: Callable[[str], FolderStage | None] | None = None
    load_folder: Callable[[str, Any], Any] | None = None
    download_folder: Callable[[str], str | None] | None = None
    # Writes a network as a stage in that layout: folder, network, diffusion and sampler settings as JSON by name, and
    # the other parts of the stage as the layout's index lists them.
    write_folder: Callable[[str, Any, Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]], None] | None = None


def check_conditions(conditions: Conditions, supported: Collection[str], backbone: str) -> None:
    """Raises ValueError for a given condition that the backbone does not support."""
    if unsupported := sorted(conditions.given().difference(supported)):
        raise ValueError(
            f"backbone {backbone} does not support the condition {unsupported[0]}; leave it out, or take another "
            f"backbone (supported here: {', '.join(sorted(supported))})"
        )
