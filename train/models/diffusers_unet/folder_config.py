"""What the JSON files of a stage in diffusers' layout say, in this project's terms. Light: loads no torch.

FOLDER/model_index.json                                      the pipeline's class and parts
FOLDER/unet/config.json                                      the network
FOLDER/scheduler/scheduler_config.json                       noise schedule, prediction, thresholding, sampler
FOLDER/image_noising_scheduler/scheduler_config.json         of super-resolution: noise of the low-resolution image
FOLDER/text_encoder/, FOLDER/tokenizer/                      the text encoder
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from dataprep.io import storage
from dataprep.io.config import Config
from dataprep.io.errors import UserError
from train.beta_schedule import BetaSchedule
from train.models.base import FolderStage
from train.models.diffusers_unet.config import DiffusersUNetConfig, UNet2DSettings
from train.models.diffusers_unet.presets import FOLDER_PRESET

INDEX_FILE, CONFIG_FILE, SCHEDULER_FILE = "model_index.json", "config.json", "scheduler_config.json"
UNET, SCHEDULER, NOISING = "unet", "scheduler", "image_noising_scheduler"
NETWORK_CLASS, SCHEDULER_CLASS = "UNet2DConditionModel", "DDPMScheduler"
BASE_CLASSES = ("IFPipeline", "IFImg2ImgPipeline", "IFInpaintingPipeline")
SR_CLASSES = ("IFSuperResolutionPipeline", "IFImg2ImgSuperResolutionPipeline", "IFInpaintingSuperResolutionPipeline")
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# Defaults of IFPipeline's and IFSuperResolutionPipeline's calls.
BASE_CALL: dict[str, Any] = {"steps": 100, "guidance": 7.0}
SR_CALL: dict[str, Any] = {"steps": 50, "guidance": 4.0}
NOISE_STEP = 250


class DdpmSettings(Config):
    """Keys and values of diffusers' DDPMScheduler that are supported, with diffusers' names and defaults."""

    num_train_timesteps: int = Field(default=1000, ge=2)
    beta_start: float = 1e-4
    beta_end: float = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: list[float] | None = None
    variance_type: Literal["fixed_small", "fixed_small_log", "learned_range"] = "fixed_small"
    clip_sample: bool = True
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    thresholding: bool = False
    dynamic_thresholding_ratio: float = Field(default=0.995, gt=0, le=1)
    clip_sample_range: float = 1.0
    sample_max_value: float = Field(default=1.0, ge=1)
    timestep_spacing: Literal["leading", "linspace"] = "leading"
    steps_offset: Literal[0] = 0
    rescale_betas_zero_snr: Literal[False] = False

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.clip_sample and not self.thresholding and self.clip_sample_range != 1:
            raise ValueError(f"clip_sample_range={self.clip_sample_range}: only 1.0 is supported")
        return self

    def betas(self) -> BetaSchedule:
        """Returns the noise schedule."""
        return BetaSchedule(
            kind=self.beta_schedule,
            steps=self.num_train_timesteps,
            start=self.beta_start,
            end=self.beta_end,
            values=None if self.trained_betas is None else tuple(self.trained_betas),
        )

    def sampling(self) -> dict[str, Any]:
        """Returns the sampler settings, without those of the pipeline's call."""
        threshold = "dynamic" if self.thresholding else "static" if self.clip_sample else "none"
        dynamic = {"percentile": self.dynamic_thresholding_ratio, "threshold_max": self.sample_max_value}
        return {
            "sampler": "ddpm",
            "spacing": self.timestep_spacing,
            "threshold": threshold,
            "learned_variance": self.variance_type == "learned_range",
            **(dynamic if self.thresholding else {}),
        }


def read_folder_config(folder: str) -> FolderStage | None:
    """Reads the JSON files of a stage in diffusers' layout; None for a folder of another kind.

    Raises UserError, naming file, key and value, for what is missing or not supported.
    """
    if not storage.exists(storage.join(folder, INDEX_FILE)):
        return None
    index = _read(folder, INDEX_FILE)
    name = index.get("_class_name")
    if name not in (*BASE_CLASSES, *SR_CLASSES):
        raise UserError(
            f"{folder}: a {name} is not supported; give a pixel-space stage with text: an IFPipeline or an "
            "IFSuperResolutionPipeline"
        )
    unet = _parse(folder, storage.join(UNET, CONFIG_FILE), UNet2DSettings, NETWORK_CLASS)
    scheduler = _parse(folder, storage.join(SCHEDULER, SCHEDULER_FILE), DdpmSettings, SCHEDULER_CLASS)
    assert isinstance(unet, UNet2DSettings) and isinstance(scheduler, DdpmSettings)
    _check_parts(folder, name, unet, scheduler)
    sampling = scheduler.sampling() | (SR_CALL if name in SR_CLASSES else BASE_CALL)
    network: dict[str, Any] = {"unet": unet, "betas": scheduler.betas()}
    if name in SR_CLASSES:
        noising = _parse(folder, storage.join(NOISING, SCHEDULER_FILE), DdpmSettings, SCHEDULER_CLASS)
        assert isinstance(noising, DdpmSettings)
        network["lowres_betas"] = noising.betas()
        sampling["lowres_level"] = NOISE_STEP / (noising.num_train_timesteps - 1)
    model = DiffusersUNetConfig(**network)
    prediction: dict[str, Any] = {"prediction": PREDICTIONS[scheduler.prediction_type]}
    resized = {"lowres_align_corners": True} if model.lowres else {}
    assert unet.sample_size is not None
    return FolderStage(
        preset=FOLDER_PRESET,
        model=model,
        diffusion=prediction | dict(model.fixed_diffusion()) | resized,
        sampling=sampling,
        resolution=unet.sample_size,
        encoder=folder,
    )


def _check_parts(folder: str, name: str, unet: UNet2DSettings, scheduler: DdpmSettings) -> None:
    """Raises UserError where the pipeline, its network and its scheduler do not fit each other."""
    where = storage.join(folder, UNET, CONFIG_FILE)
    if unet.sample_size is None:
        raise UserError(f"{where}: sample_size is missing; set it to the height and width of the images")
    if (unet.in_channels == 6) != (name in SR_CLASSES):
        raise UserError(
            f"{where}: in_channels={unet.in_channels} does not fit the {name} of {INDEX_FILE}; give a whole folder"
        )
    if unet.out_channels == 3 and scheduler.variance_type == "learned_range":
        raise UserError(
            f"{storage.join(folder, SCHEDULER, SCHEDULER_FILE)}: variance_type=learned_range, and the network has no "
            "learned variance (out_channels=3); set fixed_small"
        )


def _read(folder: str, name: str) -> dict[str, Any]:
    path = storage.join(folder, name)
    if not storage.exists(path):
        raise UserError(f"{folder}: {name} is missing; give a whole folder in diffusers' layout")
    try:
        content = storage.read_json(path)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); give a whole folder in diffusers' layout") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object; give a whole folder in diffusers' layout")
    return content


def _parse(folder: str, name: str, kind: type[Config], class_name: str) -> Config:
    """Reads a config of diffusers without its private keys; UserError for another class and for unsupported keys."""
    path, content = storage.join(folder, name), _read(folder, name)
    if content.get("_class_name") != class_name:
        raise UserError(f"{path}: a {content.get('_class_name')} is not supported; it must be a {class_name}")
    given = {key: value for key, value in content.items() if not key.startswith("_")}
    try:
        return kind.model_validate(given, strict=False)
    except ValidationError as error:
        raise UserError(f"{path}: {_describe(error, given)}") from error


def _describe(error: ValidationError, given: dict[str, Any]) -> str:
    first = error.errors()[0]
    if not first["loc"]:
        return str(first["msg"]).removeprefix("Value error, ")
    key = str(first["loc"][0])
    if first["type"] == "missing":
        return f"{key} is missing; add it"
    if first["type"] == "extra_forbidden":
        return f"{key}={given[key]!r} is not supported: the key is unknown"
    return f"{key}={given[key]!r} is not supported: {first['msg'][0].lower()}{first['msg'][1:]}"
