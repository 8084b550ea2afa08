"""Config of a stage's diffusion process, and the names of schedules, predictions, weightings, samplers and thresholds.

The functions behind the names are in schedules.py, weighting.py, samplers.py and guidance.py. Light: loads no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dataprep.io.config import Config, NameIn
from train.beta_schedule import BetaSchedule, OwnSpacing
from train.diffusion.samplers import SAMPLERS
from train.diffusion.weighting import WEIGHTINGS

ScheduleName = Literal["cosine", "linear", "discrete"]
Prediction = Literal["eps", "x0", "v"]
Weighting = Annotated[str, NameIn(WEIGHTINGS)]
SamplerName = Annotated[str, NameIn(SAMPLERS)]
Spacing = Literal["time", "log_snr", "karras"]
StepSpacing = Literal[Spacing, OwnSpacing]
Threshold = Literal["none", "static", "dynamic"]


class DiffusionConfig(Config):
    """Diffusion process of one stage, the same in training and sampling, and the loss weighting."""

    schedule: ScheduleName = Field(
        default="cosine",
        description="log-SNR over time; discrete: the steps of `betas`, for networks that learned those",
    )
    betas: BetaSchedule = Field(default=BetaSchedule(), description="of schedule: discrete")
    log_snr_shift: float = Field(default=0.0, ge=-10, le=10, description="added to log-SNR; > 0: less noise")
    prediction: Prediction = Field(default="v", description="what the network predicts")
    weighting: Weighting = Field(default="plain", description="loss weight over the noise level")
    min_snr_gamma: float = Field(default=5.0, gt=0, description="cap of the SNR weight on x0 (Hang et al. 2023)")
    sigmoid_bias: float = Field(default=0.0, description="log-SNR where the sigmoid weight is one half")
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
