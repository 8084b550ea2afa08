"""Config of a stage's diffusion process, and the names of schedules, predictions, weightings, samplers and thresholds.

The functions behind the names are in schedules.py, weighting.py, samplers.py and guidance.py. Light: loads no torch.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dataprep.io.config import Config, NameIn
from train.diffusion.samplers import SAMPLERS
from train.diffusion.weighting import WEIGHTINGS

ScheduleName = Literal["cosine", "linear"]
Prediction = Literal["eps", "x0", "v"]
Weighting = Annotated[str, NameIn(WEIGHTINGS)]
SamplerName = Annotated[str, NameIn(SAMPLERS)]
Spacing = Literal["time", "log_snr", "karras"]
Threshold = Literal["none", "static", "dynamic"]


class DiffusionConfig(Config):
    """Diffusion process of one stage, the same in training and sampling, and the loss weighting."""

    schedule: ScheduleName = Field(default="cosine", description="log-SNR over time")
    log_snr_shift: float = Field(default=0.0, ge=-10, le=10, description="added to log-SNR; > 0: less noise")
    prediction: Prediction = Field(default="v", description="what the network predicts")
    weighting: Weighting = Field(default="plain", description="loss weight over the noise level")
    min_snr_gamma: float = Field(default=5.0, gt=0, description="cap of the SNR weight on x0 (Hang et al. 2023)")
    sigmoid_bias: float = Field(default=0.0, description="log-SNR where the sigmoid weight is one half")
    lowres_schedule: ScheduleName = Field(default="cosine", description="noise level -> log-SNR of the augmentation")
    lowres_max_level: float = Field(
        default=1.0, ge=0, le=1, description="largest augmentation level in training; at most 0.5 with lowres_residual"
    )
