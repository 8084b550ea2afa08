"""Config of a stage's diffusion process, and the names of schedules, times, predictions, weightings and samplers.

The functions behind the names are in schedules.py, times.py, weighting.py, samplers.py and guidance.py. Light: loads no
torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config, NameIn
from train.beta_schedule import BetaSchedule, OwnSpacing
from train.diffusion.losses import LOSSES
from train.diffusion.samplers import SAMPLERS
from train.diffusion.times import TIMES
from train.diffusion.weighting import WEIGHTINGS

ScheduleName = Literal["cosine", "linear", "flow", "discrete"]
Prediction = Literal["eps", "x0", "v", "velocity"]
Times = Annotated[str, NameIn(TIMES)]
LossName = Annotated[str, NameIn(LOSSES)]
Weighting = Annotated[str, NameIn(WEIGHTINGS)]
SamplerName = Annotated[str, NameIn(SAMPLERS)]
Spacing = Literal["time", "log_snr", "karras"]
StepSpacing = Literal[Spacing, OwnSpacing]
Threshold = Literal["none", "static", "dynamic"]


class GuidanceConfig(Config):
    """How the predictions of a network with and without its caption become one clean image."""

    guidance: float = Field(default=3.0, ge=0, description="classifier-free guidance weight; 1: none")
    guidance_rescale: float = Field(
        default=0.0, ge=0, le=1, description="share of the contrast added by guidance that is removed again"
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), strict=False, description="times between which guidance is on; 0: clean, 1: noise"
    )
    guidance_parallel: float = Field(
        default=1.0, ge=0, le=1, description="kept share of guidance along the predicted image (APG: 0); 1: all"
    )
    guidance_norm: float | None = Field(
        default=None, gt=0, description="largest root mean square of what is guided by (APG); None: any"
    )
    guidance_momentum: float = Field(
        default=0.0, gt=-1, lt=1, description="weight of earlier steps' guidance in a step (APG: -0.5)"
    )
    guidance_every: int = Field(
        default=1, ge=1, description="steps per evaluation of what is guided away from; between, the last one counts"
    )
    threshold: Literal["auto", Threshold] = Field(
        default="auto",
        description="clipping of the predicted clean image; auto: dynamic with guidance above 1, else static",
    )
    percentile: float = Field(default=0.995, gt=0, le=1, description="percentile of dynamic thresholding")
    threshold_max: float | None = Field(
        default=None, ge=1, description="largest bound of dynamic thresholding; None: the percentile, however large"
    )

    def resolve_threshold(self) -> Threshold:
        """Returns `threshold`; for `auto` dynamic with guidance above 1, else static.

        Without guidance nothing saturates, and the dynamic threshold would darken images whose brightest pixels
        overshoot a little.
        """
        if self.threshold != "auto":
            return self.threshold
        return "dynamic" if self.guidance > 1 else "static"

    @model_validator(mode="after")
    def _check_interval(self) -> Self:
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"guidance_interval {[low, high]} is no interval of [0, 1]; give low <= high")
        return self


class DiffusionConfig(Config):
    """Diffusion process of one stage, the same in training and sampling, and the loss weighting."""

    schedule: ScheduleName = Field(
        default="cosine",
        description="log-SNR over time; flow: the linear path of flow matching; discrete: the steps of `betas`, for "
        "networks that learned those",
    )
    betas: BetaSchedule = Field(default=BetaSchedule(), description="of schedule: discrete")
    log_snr_shift: float = Field(default=0.0, ge=-10, le=10, description="added to log-SNR; > 0: less noise")
    times: Times = Field(default="uniform", description="distribution of the times in training")
    times_mean: float = Field(default=0.0, description="times=logit_normal: mean of log(t / (1 - t)); > 0: more noise")
    times_std: float = Field(default=1.0, gt=0, description="times=logit_normal: its standard deviation")
    prediction: Prediction = Field(default="v", description="what the network predicts")
    loss: LossName = Field(default="l2", description="of the weighted error: squared, absolute, or Huber's mix of both")
    huber_delta: float = Field(default=0.1, gt=0, description="loss=huber: weighted error above which it is linear")
    weighting: Weighting = Field(default="plain", description="loss weight over the noise level")
    min_snr_gamma: float = Field(default=5.0, gt=0, description="cap of the SNR weight on x0 (Hang et al. 2023)")
    velocity_min_time: float = Field(
        default=0.05, gt=0, le=1, description="weighting=velocity: flow time below which the weight on x0 is constant"
    )
    sigmoid_bias: float = Field(default=0.0, description="log-SNR where the sigmoid weight is one half")
    variance_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the bound that trains the variance of a step (0.001 in improved DDPM); 0: not trained",
    )
    variance_steps: int = Field(
        default=1000, ge=2, description="steps of that bound's chain; of schedule discrete those of `betas`"
    )
    lowres_schedule: ScheduleName = Field(default="cosine", description="noise level -> log-SNR of the augmentation")
    lowres_max_level: float = Field(
        default=1.0, ge=0, le=1, description="largest augmentation level in training; at most 0.5 with lowres_residual"
    )
    lowres_betas: BetaSchedule = Field(default=BetaSchedule(), description="of lowres_schedule: discrete")
    lowres_align_corners: bool = Field(
        default=False, description="how the low-resolution image is resized: its corner pixels stay in the corners"
    )

    @model_validator(mode="after")
    def _check_shift(self) -> Self:
        if self.schedule == "discrete" and self.log_snr_shift:
            raise ValueError(
                f"log_snr_shift={self.log_snr_shift}: schedule discrete has no noise levels but its betas'; set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_bound(self) -> Self:
        if self.weighting == "elbo" and self.loss != "l2":
            raise ValueError(f"loss={self.loss}: weighting=elbo is a bound of squared errors; set loss to l2")
        if self.weighting == "elbo" and self.times != "uniform":
            raise ValueError(
                f"times={self.times}: weighting=elbo adds up all noise levels, of which that hardly takes those at the "
                "ends; set times to uniform"
            )
        if self.weighting == "elbo" and self.variance_weight:
            raise ValueError(
                f"variance_weight={self.variance_weight}: weighting=elbo is a bound without steps, in bits; set "
                "variance_weight to 0"
            )
        return self
