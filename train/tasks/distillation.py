"""Task `distillation`: a stage learns to take in a few steps the way that its teacher, guided, takes in many.

Every sample is noised to the beginning of one of the student's steps; the teacher goes on from there to the end of that
step, and the student regresses the clean image from which one step leads there (`train.diffusion.distillation`). The
teacher is frozen and on every rank; nothing else differs from the task `diffusion`. docs/distillation.md says why this
method. Shape legend: B batch, C channels, H W height and width, S the teacher's steps within one of the student.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataprep.io import storage
from dataprep.io.pack_format import IMAGE_FEATURES
from train.diffusion.config import DiffusionConfig
from train.diffusion.distillation import step_levels, step_target
from train.diffusion.guidance import guide_model
from train.diffusion.objective import NoisedImages
from train.diffusion.samplers import find_sampler
from train.diffusion.schedules import (
    LOG_SNR_LIMIT,
    add_noise,
    alpha_sigma,
    eps_from_x0,
    network_input,
    prediction_target,
    split_variance,
)
from train.diffusion.weighting import loss_weight
from train.init_config import InitConfig
from train.loader.mix_config import DataMix
from train.loader.shard_index import ShardIndex
from train.models.base import Conditions, Denoiser
from train.models.distilled import Distilled
from train.models.export import load_stage, save_stage
from train.tasks.denoising import DenoisingInputs, read_text_width
from train.tasks.diffusion import DiffusionTask, find_empty_text
from train.tasks.distillation_config import DistillationTrainingConfig
from train.tasks.pack_training import train_on_pack


class DistillationTask(DiffusionTask):
    """A student stage; ``teacher`` is the local folder of an exported stage."""

    def __init__(
        self,
        teacher: str,
        config: DistillationTrainingConfig,
        text_dim: int,
        empty_text_LD: np.ndarray | None = None,
        image_dim: int | None = None,
    ) -> None:
        super().__init__(config, text_dim, empty_text_LD, None, image_dim)
        self.settings, self.teacher_folder = config.distillation, teacher
        self.levels_TS = step_levels(
            config.diffusion, self.settings.steps, self.settings.teacher_steps, self.settings.spacing
        )
        self.placed: dict[torch.device, Tensor] = {}  # levels by device
        self.loaded: tuple[Denoiser, DiffusionConfig, str] | None = None

    def load_teacher(self, device: torch.device) -> tuple[Denoiser, DiffusionConfig, str]:
        """Returns the teacher on ``device``, its diffusion process and the digest of its weights; loads it once."""
        if self.loaded is None:
            network, settings = load_stage(self.teacher_folder, device)
            if self.empty_text_LD is not None:
                network.set_empty_text(torch.from_numpy(self.empty_text_LD))  # type: ignore[attr-defined]
            self.loaded = network, DiffusionConfig(**settings["diffusion"]), str(settings.get("digest", ""))
        return self.loaded

    def noise_images(self, x0_BCHW: Tensor, t_B: Tensor, noise_BCHW: Tensor) -> NoisedImages:
        """Noises a batch to beginnings of the student's steps, evenly many of each; the target is still to come."""
        log_snr_B = self._step_levels(t_B)[:, 0]
        scales = alpha_sigma(log_snr_B)
        x_BCHW = add_noise(x0_BCHW, noise_BCHW, log_snr_B, scales)
        return NoisedImages(x0_BCHW, x_BCHW, x0_BCHW, log_snr_B, loss_weight(log_snr_B, self.config.diffusion), scales)

    def _step_levels(self, t_B: Tensor) -> Tensor:
        """Returns the teacher's levels (B, S + 1) within the step that ``t_B`` in [0, 1) draws; 1 is the noisiest."""
        if t_B.device not in self.placed:  # once: a copy from the host waits
            self.placed[t_B.device] = self.levels_TS.to(t_B.device)
        return self.placed[t_B.device][self._draw_step(t_B)]

    def _draw_step(self, t_B: Tensor) -> Tensor:
        steps = self.settings.steps
        return steps - 1 - (t_B * steps).long().clamp(max=steps - 1)

    @torch.no_grad()
    def complete_inputs(self, inputs: DenoisingInputs) -> DenoisingInputs:
        """Asks the teacher for the clean images that the student has to predict."""
        noised, prediction = inputs.noised, self.config.diffusion.prediction
        network, diffusion, _ = self.load_teacher(noised.x_BCHW.device)
        denoise = guide_model(partial(_ask, network, diffusion, inputs.conditions), diffusion, self.settings)
        is_last_B = self._draw_step(inputs.t_B) == self.settings.steps - 1
        sampler, levels_BS = find_sampler(self.settings.sampler), self._step_levels(inputs.t_B)
        x0_BCHW = step_target(denoise, sampler, noised.x_BCHW, levels_BS, is_last_B)
        noise_BCHW = eps_from_x0(x0_BCHW, noised.x_BCHW, noised.log_snr_B)
        target_BCHW = prediction_target(prediction, x0_BCHW, noise_BCHW, noised.log_snr_B, noised.scales)
        return inputs._replace(noised=noised._replace(x0_BCHW=x0_BCHW, target_BCHW=target_BCHW))

    def preview_levels(self) -> Tensor:
        """Returns the student's own levels, and the clean end."""
        return torch.cat([self.levels_TS[:, 0], torch.tensor([LOG_SNR_LIMIT])])

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the stage, with the steps that it has learned to be sampled with."""
        _, _, digest = self.load_teacher(torch.device("cpu"))
        sampling = {"sampler": "ddim", "steps": self.settings.steps, "log_snrs": self.levels_TS[:, 0].tolist()}
        sampling |= {"guidance": 1.0, "threshold": "none"}
        distilled = Distilled(digest, self.settings.guidance, sampling)
        save_stage(
            folder,
            weights,
            self.layout,
            self.config.diffusion.model_dump(mode="json"),
            step,
            distilled=distilled,
        )


def _ask(
    network: Denoiser,
    diffusion: DiffusionConfig,
    conditions: Conditions,
    x_BCHW: Tensor,
    log_snr_B: Tensor,
    keep_B: Tensor,
) -> Tensor:
    """Returns the teacher's output for the rows of ``conditions``, once or (for guidance) twice, float32."""
    batch = log_snr_B.shape[0]
    given = {
        name: torch.cat([value] * (batch // len(value)))
        for name, value in conditions._asdict().items()
        if value is not None
    }
    kept_B = given.pop("text_keep_B") & keep_B
    with torch.autocast(x_BCHW.device.type, torch.bfloat16, enabled=x_BCHW.device.type == "cuda"):
        seen_BCHW = network_input(x_BCHW, log_snr_B, diffusion.schedule)
        output_BCHW = network(seen_BCHW, log_snr_B, Conditions(**given, text_keep_B=kept_B))
    return split_variance(output_BCHW, x_BCHW)[0].float()


def build_distillation_task(config: DistillationTrainingConfig, shards: ShardIndex) -> DistillationTask:
    """Returns the task of a student that trains on ``shards``."""
    teacher = storage.local_folder(config.distillation.teacher)
    image_dim = shards.vectors.get(IMAGE_FEATURES)
    return DistillationTask(teacher, config, read_text_width(shards), find_empty_text(config, shards), image_dim)


def train_distillation(
    index: str,
    validate: bool,
    config: DistillationTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains a student on this rank, as `train.tasks.diffusion.train_diffusion` does a stage.

    It begins with the weights of its teacher, unless ``init`` names others.
    """
    if config.init is None:
        config = config.model_copy(update={"init": InitConfig(source=config.distillation.teacher)})
    shards = ShardIndex.read(index)
    task = build_distillation_task(config, shards)
    return train_on_pack(task, shards, validate, config, folder, seed, mix)
