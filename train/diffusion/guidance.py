"""Classifier-free guidance and thresholding of the predicted clean image.

The second half of what `GuidedDenoiser` asks for need not be unconditional: a negative prompt's prediction, or that of
a weaker network (autoguidance, Karras et al. 2024, arXiv 2406.02507), is guided away from in the same way.

Images are (B, C, H, W), float; clean images lie in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from train.diffusion.config import DiffusionConfig, GuidanceConfig, Prediction, Threshold
from train.diffusion.projected_guidance import NO_PROJECTION, DifferenceMemory, Projection, projected_guidance
from train.diffusion.schedules import log_snr_at, split_variance, x0_from_output

# (noisy image (B, C, H, W), log-SNR (B,)) -> predicted clean image (B, C, H, W)
PredictX0 = Callable[[Tensor, Tensor], Tensor]


class LogSnrInterval(NamedTuple):
    """Log-SNRs between which guidance is on, both ends included."""

    low: float = -float("inf")
    high: float = float("inf")


ALL_LEVELS = LogSnrInterval()
QUANTILE_LIMIT = 2**24  # most values of a row of torch.quantile


def apply_guidance(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Returns w * conditional + (1 - w) * unconditional (equation 2); the same for eps, x_0 and v: all are linear."""
    return unconditional + scale * (conditional - unconditional)


def rescale_guidance(guided_BCHW: Tensor, conditional_BCHW: Tensor, share: float) -> Tensor:
    """Rescales a guided output to the conditional one's standard deviation (Lin et al. 2024, equations 15 and 16).

    Guidance increases it, which over-exposes colours. ``share`` in [0, 1] is how much of the increase to undo.
    """
    if share == 0:
        return guided_BCHW
    target, actual = (x.std(dim=(1, 2, 3), keepdim=True) for x in (conditional_BCHW, guided_BCHW))
    return guided_BCHW * (1 + share * (target / actual.clamp(min=1e-8) - 1))


def static_threshold(x0_BCHW: Tensor) -> Tensor:
    """Clips to [-1, 1] (A.10)."""
    return x0_BCHW.clamp(-1, 1)


def dynamic_threshold(x0_BCHW: Tensor, percentile: float = 0.995, maximum: float | None = None) -> Tensor:
    """Clips each image to its own percentile s of |x_0|, between 1 and ``maximum``, and divides by s (A.10)."""
    bound_B = _row_quantile(x0_BCHW.float().abs().flatten(1), percentile).clamp(min=1.0, max=maximum)
    bound = bound_B.view(-1, 1, 1, 1)
    return x0_BCHW.clamp(-bound, bound) / bound


def _row_quantile(values_BN: Tensor, share: float) -> Tensor:
    """Returns torch.quantile of each row (B,), which it refuses above `QUANTILE_LIMIT` values: 5.6 megapixels."""
    count = values_BN.shape[1]
    if count <= QUANTILE_LIMIT:
        return torch.quantile(values_BN, share, dim=1)
    below, part = divmod(share * (count - 1), 1)
    low_B, high_B = (values_BN.kthvalue(min(int(below) + rank, count), dim=1).values for rank in (1, 2))
    return torch.lerp(low_B, high_B, part)


def apply_threshold(
    x0_BCHW: Tensor, kind: Threshold, percentile: float = 0.995, maximum: float | None = None
) -> Tensor:
    """Applies a threshold by name; raises ValueError for an unknown one. The numbers are of the dynamic one."""
    if kind == "none":
        return x0_BCHW
    if kind == "static":
        return static_threshold(x0_BCHW)
    if kind == "dynamic":
        return dynamic_threshold(x0_BCHW, percentile, maximum)
    raise ValueError(f"threshold {kind!r} is unknown; take one of none, static, dynamic")


@dataclass(frozen=True)
class GuidedDenoiser:
    """The denoiser for the samplers, a `PredictX0`, from a network; one for each sampling.

    ``model(x, log_snr, keep_B)`` predicts with the caption where ``keep_B`` is True; where it is False, without it or
    with what the caller puts in its place. It is called once per step: on 2B rows, the first half with the caption; or
    on B rows where ``scale`` is 1 or every noise level is outside ``interval`` (Kynkaanniemi et al. 2024). ``rescale``
    is the share for `rescale_guidance`, ``maximum`` the largest bound of the dynamic threshold, ``projection`` that of
    `projected_guidance`. With ``every`` > 1 only each ``every``-th guided call asks for 2B rows; those between take the
    difference of the last two clean images.
    """

    model: Callable[[Tensor, Tensor, Tensor], Tensor]
    prediction: Prediction
    scale: float
    threshold: Threshold = "dynamic"
    percentile: float = 0.995
    interval: LogSnrInterval = ALL_LEVELS
    rescale: float = 0.0
    maximum: float | None = None
    projection: Projection = NO_PROJECTION
    every: int = 1
    memory: DifferenceMemory = field(default_factory=DifferenceMemory, init=False, compare=False, repr=False)

    def __call__(self, x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        """Returns the predicted clean image."""
        return self.predict_with_variance(x_BCHW, log_snr_B)[0]

    def predict_with_variance(self, x_BCHW: Tensor, log_snr_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """As a call, and the learned variance (see `split_variance`), which is that of the caption, unguided."""
        batch = x_BCHW.shape[0]
        inside_B = None  # None: every row
        if self.scale != 1 and self.interval != ALL_LEVELS:
            inside_B = (log_snr_B >= self.interval.low) & (log_snr_B <= self.interval.high)
        # An interval asks the device, and waits for it.
        guided = self.scale != 1 and (inside_B is None or bool(inside_B.any()))
        asked = guided and (self.memory.last_BCHW is None or self.memory.steps % self.every == 0)
        self.memory.steps += guided
        if not asked:
            keep = torch.ones(batch, dtype=torch.bool, device=x_BCHW.device)
            output, variance = split_variance(self.model(x_BCHW, log_snr_B, keep).float(), x_BCHW)
            x0_BCHW = unguided_BCHW = x0_from_output(self.prediction, output, x_BCHW, log_snr_B)
            if guided:
                assert self.memory.last_BCHW is not None
                x0_BCHW = self._guide_image(unguided_BCHW, self.memory.last_BCHW)
        else:
            keep = torch.arange(2 * batch, device=x_BCHW.device) < batch
            both = self.model(torch.cat([x_BCHW, x_BCHW]), torch.cat([log_snr_B, log_snr_B]), keep).float()
            both, variance = split_variance(both, x_BCHW)
            variance = None if variance is None else variance[:batch]
            x0_BCHW = self._guide(both[:batch], both[batch:], x_BCHW, log_snr_B)
            unguided_BCHW = x0_from_output(self.prediction, both[:batch], x_BCHW, log_snr_B)
        if guided and inside_B is not None:
            x0_BCHW = torch.where(inside_B.view(-1, 1, 1, 1), x0_BCHW, unguided_BCHW)
        return apply_threshold(x0_BCHW, self.threshold, self.percentile, self.maximum), variance

    def _guide(self, conditional: Tensor, unconditional: Tensor, x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
        """Returns the clean image that two outputs of the network give together."""
        if self.projection == NO_PROJECTION and self.every == 1:
            guided = apply_guidance(conditional, unconditional, self.scale)
            output = rescale_guidance(guided, conditional, self.rescale)
            return x0_from_output(self.prediction, output, x_BCHW, log_snr_B)
        with_text, without = (
            x0_from_output(self.prediction, output, x_BCHW, log_snr_B) for output in (conditional, unconditional)
        )
        self.memory.last_BCHW = with_text - without
        return self._guide_image(with_text, self.memory.last_BCHW)

    def _guide_image(self, with_text_BCHW: Tensor, difference_BCHW: Tensor) -> Tensor:
        """Guides a clean image by the difference of two."""
        guided = projected_guidance(with_text_BCHW, difference_BCHW, self.scale, self.projection, self.memory)
        return rescale_guidance(guided, with_text_BCHW, self.rescale)


def guide_model(
    model: Callable[[Tensor, Tensor, Tensor], Tensor], diffusion: DiffusionConfig, settings: GuidanceConfig
) -> GuidedDenoiser:
    """Returns the `GuidedDenoiser` of a network with a diffusion process, under ``settings``."""
    interval = ALL_LEVELS
    if settings.guidance_interval != (0.0, 1.0):  # less time is less noise, so a higher log-SNR
        times = torch.tensor(settings.guidance_interval)
        high, low = log_snr_at(times, diffusion.schedule, diffusion.log_snr_shift, diffusion.betas).tolist()
        interval = LogSnrInterval(low, high)
    return GuidedDenoiser(
        model,
        diffusion.prediction,
        settings.guidance,
        settings.resolve_threshold(),
        settings.percentile,
        interval,
        settings.guidance_rescale,
        settings.threshold_max,
        Projection(settings.guidance_parallel, settings.guidance_norm, settings.guidance_momentum),
        settings.guidance_every,
    )
