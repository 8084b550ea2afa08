"""Autoencoder with a codebook (VQ-VAE, van den Oord et al. 2017; the decoder of VQGAN, Esser et al. 2021, 3.1).

All layers look at a neighbourhood of their position alone, norms included, so that a model trained on crops does the
same on whole images, of any size that the stride divides.

Shape legend: B batch, C channels, H W height and width of the image, h w of the codes, N = B * h * w positions,
K codes, D numbers of a code.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.models.layers import zero_init
from train.models.vq.config import VqConfig


class VqOutput(NamedTuple):
    """What training needs of a forward pass."""

    image_BCHW: Tensor  # reconstructed
    latent_BDhw: Tensor  # of the encoder, before the codebook
    quantised_BDhw: Tensor  # the codes' entries, without gradient
    codes_Bhw: Tensor  # int64


class ChannelNorm(nn.Module):
    """Root mean square norm over the channels of each position."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        root_B1HW = torch.rsqrt(x_BCHW.float().square().mean(1, keepdim=True) + 1e-6)
        return x_BCHW * root_B1HW.to(x_BCHW.dtype) * self.scale


class ConvBlock(nn.Module):
    """``x + conv(silu(norm(conv(silu(norm(x))))))``; the branch starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = ChannelNorm(channels), ChannelNorm(channels)
        self.conv_in = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_out = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = self.conv_in(functional.silu(self.norm_in(x_BCHW)))
        out_BCHW: Tensor = x_BCHW + self.conv_out(functional.silu(self.norm_out(h_BCHW)))
        return out_BCHW


class VqAutoencoder(nn.Module):
    """Image to codes and back. The buffer ``codebook`` (K, D) is zero until training sets it (`train.codebook`)."""

    def __init__(self, config: VqConfig) -> None:
        super().__init__()
        self.config = config
        widths, pixels = config.widths, config.patch**2 * config.image_channels
        self.embed = nn.Conv2d(pixels, widths[0], 3, padding=1)
        down: list[nn.Module] = []
        for number, width in enumerate(widths):
            if number:
                down.append(nn.Conv2d(widths[number - 1], width, 2, stride=2))
            down += [ConvBlock(width) for _ in range(config.blocks)]
        self.down = nn.Sequential(*down, ChannelNorm(widths[-1]), nn.Conv2d(widths[-1], config.code_width, 1))
        self.register_buffer("codebook", torch.zeros(config.codes, config.code_width))
        self.codebook: Tensor
        up: list[nn.Module] = [nn.Conv2d(config.code_width, widths[-1], 3, padding=1)]
        for number, width in reversed([*enumerate(widths)]):
            up += [ConvBlock(width) for _ in range(config.blocks)]
            if number:
                up += [nn.Conv2d(width, 4 * widths[number - 1], 3, padding=1), nn.PixelShuffle(2)]
        self.up = nn.Sequential(*up, ChannelNorm(widths[0]), nn.SiLU())
        self.out = nn.Conv2d(widths[0], pixels, 3, padding=1)

    def forward(self, image_BCHW: Tensor) -> VqOutput:
        """Encodes and decodes images in [-1, 1]; gradients pass the codebook as if it were not there.

        Raises ValueError for a size that the stride does not divide.
        """
        latent_BDhw = self.encode_latent(image_BCHW)
        codes_Bhw = self.nearest_codes(latent_BDhw)
        quantised_BDhw = self.look_up(codes_Bhw)
        passed_BDhw = latent_BDhw + (quantised_BDhw - latent_BDhw).detach()
        return VqOutput(self.decode_latent(passed_BDhw), latent_BDhw, quantised_BDhw, codes_Bhw)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Returns the codes of images in [-1, 1], int64 (B, h, w)."""
        return self.nearest_codes(self.encode_latent(image_BCHW))

    def decode(self, codes_Bhw: Tensor) -> Tensor:
        """Returns the images (B, C, H, W) of codes, about in [-1, 1], not clipped."""
        return self.decode_latent(self.look_up(codes_Bhw))

    def encode_latent(self, image_BCHW: Tensor) -> Tensor:
        """Returns what the encoder gives, before the codebook, float32 (B, D, h, w)."""
        stride, size = self.config.stride(), tuple(image_BCHW.shape[2:])
        if size[0] % stride or size[1] % stride:
            raise ValueError(f"image of {size} pixels; height and width must be multiples of {stride}")
        x_BCHW = functional.pixel_unshuffle(image_BCHW.to(self.embed.weight.dtype), self.config.patch)
        latent_BDhw: Tensor = self.down(self.embed(x_BCHW))
        return latent_BDhw.float()

    def decode_latent(self, latent_BDhw: Tensor) -> Tensor:
        """Returns the images (B, C, H, W) of entries of the codebook (B, D, h, w)."""
        x_BCHW = self.up(latent_BDhw.to(self.out.weight.dtype))
        return functional.pixel_shuffle(self.out(x_BCHW), self.config.patch)

    def nearest_codes(self, latent_BDhw: Tensor) -> Tensor:
        """Returns the number of the nearest entry by Euclidean distance, int64 (B, h, w)."""
        with torch.no_grad(), torch.autocast(latent_BDhw.device.type, enabled=False):
            latent_ND, codebook_KD = latent_BDhw.float().movedim(1, 3).flatten(0, 2), self.codebook.float()
            # |z - e|^2 without |z|^2, which is the same for all codes
            distance_NK = torch.addmm(codebook_KD.square().sum(1)[None], latent_ND, codebook_KD.T, alpha=-2)
            return distance_NK.argmin(1).unflatten(0, (latent_BDhw.shape[0], *latent_BDhw.shape[2:]))

    def look_up(self, codes_Bhw: Tensor) -> Tensor:
        """Returns the codebook's entries, float32 (B, D, h, w)."""
        return functional.embedding(codes_Bhw, self.codebook.float()).movedim(3, 1)
