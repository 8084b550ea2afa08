"""The networks of peers in the demo's place: as a `Denoiser` of ours, and the plain loop that trains one.

Shape legend: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from train.loader.feed import DeviceFeed
from train.loader.loader import Loader
from train.lr_schedule import ema_decay_at, learning_rate_at
from train.models.base import Conditions, DenoiserConfig
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionTrainingConfig

NORM = 1.0  # of gradients, clipped
RATE, BATCH = 1e-3, 32  # AdamW's; a usual choice, tuned for neither network


class PeerNetwork(nn.Module):
    """A network of a library, called as ours are. ``network``: it."""

    def __init__(self, config: DenoiserConfig, network: nn.Module) -> None:
        super().__init__()
        self.config, self.network = config, network

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns what the network predicts."""
        keep_B = conditions.text_keep_B
        if self.training or keep_B is None or bool(keep_B.all()):
            return self.predict(x_BCHW, log_snr_B, conditions)
        # Guided sampling: the first half has the caption. Each half is a call, as a loop of the library would do it.
        halves = torch.arange(len(x_BCHW)).chunk(2)
        parts = [_take(conditions, rows) for rows in halves]
        return torch.cat(
            [self.predict(x_BCHW[rows], log_snr_B[rows], part) for rows, part in zip(halves, parts, strict=True)]
        )

    @abstractmethod
    def predict(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Returns what the network predicts, where all rows have a caption, none, or in training some."""


def _take(conditions: Conditions, rows: Tensor) -> Conditions:
    return Conditions(**{name: getattr(conditions, name)[rows] for name in conditions.given()})


class ImagenPytorch(PeerNetwork):
    """imagen-pytorch's Unet, about as large as our preset tiny-base, with the arguments that its README names."""

    def __init__(self, config: DenoiserConfig, tokens: int) -> None:
        from imagen_pytorch import Unet

        network = Unet(
            dim=32,
            dim_mults=(1, 2, 2),
            num_resnet_blocks=1,
            layer_attns=(False, True, True),
            layer_cross_attns=(False, True, True),
            attn_heads=4,
            attn_dim_head=32,
            text_embed_dim=config.text_dim,
            max_text_len=tokens,
            cond_dim=64,
        )
        super().__init__(config, network)

    def predict(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Drops captions itself in training, as its trainer does."""
        keep_B = conditions.text_keep_B
        drop = 0.1 if self.training else float(keep_B is not None and not bool(keep_B.any()))
        text = {"text_embeds": conditions.text_BLD, "text_mask": conditions.text_mask_BL}
        output: Tensor = self.network(x_BCHW, log_snr_B, cond_drop_prob=drop, **text)
        return output


class Diffusers(PeerNetwork):
    """diffusers' UNet2DConditionModel in the layout of DeepFloyd IF, about as large as our preset tiny-base."""

    def __init__(self, config: DenoiserConfig, tokens: int) -> None:
        from diffusers import UNet2DConditionModel

        network: Any = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(32, 64, 80),
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
            in_channels=3,
            out_channels=3,
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=16,
            cross_attention_dim=64,
            encoder_hid_dim=config.text_dim,
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
            norm_num_groups=16,
        )
        super().__init__(config, network)

    def predict(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Conditions) -> Tensor:
        """Reads zeros where there is no caption. Its joint attention takes no mask: padding is zeros too."""
        assert conditions.text_BLD is not None
        text_BLD = conditions.text_BLD
        if conditions.text_keep_B is not None:
            text_BLD = text_BLD * conditions.text_keep_B[:, None, None]
        time_B = 2 / torch.pi * torch.atan(torch.exp(-log_snr_B / 2))  # of the cosine schedule
        output: Tensor = self.network(x_BCHW, time_B * 1000, text_BLD).sample
        return output


def train_plainly(
    network: PeerNetwork, task: DiffusionTask, loader: Loader, config: DiffusionTrainingConfig, seconds: float
) -> dict[str, Any]:
    """Trains on `loader`'s batches for so many CPU-seconds; returns the EMA of the network, updates and CPU-seconds.

    A loop as anyone would write it: the task's loss, AdamW (fused) with warm-up and a cosine, clipping, EMA. How many
    updates there are is measured by the first ones.
    """
    feed = DeviceFeed(torch.device("cpu"), 0, task.prepare)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, betas=(0.9, 0.99), fused=True)
    average, steps, step, warm = deepcopy(network).eval().requires_grad_(False), 10**9, 0, 20
    network.train()
    began = time.process_time()
    while step < steps:
        if step == warm:
            steps = max(warm + 1, int(seconds / (time.process_time() - began) * warm))
        rate = learning_rate_at(step, RATE, 100, steps if steps < 10**9 else None)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch, random = feed.receive(feed.send(loader.stored_batch(step, 0, 1, 0, 1), step))
        loss, _ = task.loss(network, batch, random)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), NORM)
        optimizer.step()
        step += 1
        with torch.no_grad():
            decay = ema_decay_at(step, config.ema_decay)
            pairs = list(zip(average.parameters(), network.parameters(), strict=True))
            torch._foreach_lerp_([old for old, _ in pairs], [new for _, new in pairs], 1 - decay)
    return {"network": average, "steps": step, "cpu_seconds": time.process_time() - began}
