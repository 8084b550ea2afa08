"""Task `refinement`: super-resolution that predicts the codes of a trained autoencoder (Muse, Chang et al. 2023, 2.5).

Shape legend: B batch, C channels, H W height and width, K codes, h w height and width in codes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.diffusion.objective import to_model_range, to_pixels
from train.loader.loader import Batch
from train.loader.mix_config import DataMix
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex
from train.models.base import Conditions
from train.models.export import save_stage
from train.models.refiner.config import RefinerConfig
from train.models.refiner.masking import hide_at_random, hide_codes, masked_cross_entropy, shown_log_ratio
from train.models.refiner.parallel_decoding import decode_codes
from train.models.refiner.refiner import Refiner
from train.models.vq.stage_folder import load_autoencoder
from train.tasks.denoising import read_text_width, spread_times
from train.tasks.diffusion import DiffusionTask
from train.tasks.pack_training import train_on_pack
from train.tasks.refinement_config import RefinementTrainingConfig

GRID_ROUNDS = 8  # of masked decoding, for a grid of samples


class HiddenCodes(NamedTuple):
    """What the loss needs of a batch besides the network."""

    codes_Bhw: Tensor  # int64
    hidden_Bhw: Tensor  # bool
    conditions: Conditions


class RefinementTask(DiffusionTask):
    """A stage for the training loop, which is conditioned as a diffusion stage; ``autoencoder``: a folder."""

    config: RefinementTrainingConfig

    def __init__(self, config: RefinementTrainingConfig, text_dim: int, autoencoder: str) -> None:
        super().__init__(config, text_dim)
        self.autoencoder = load_autoencoder(autoencoder)
        layout = self.refiner_config()
        if self.autoencoder.config != layout.autoencoder:
            raise UserError(f"autoencoder={config.autoencoder}: it was trained with another layout; train it again")
        self.count = layout.autoencoder.codes

    def refiner_config(self) -> RefinerConfig:
        """Returns the network's config, with overrides and text width."""
        return cast(RefinerConfig, self.layout)

    def build(self) -> nn.Module:
        """Returns a fresh network, without the autoencoder."""
        return Refiner(self.refiner_config(), complete=False)

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``inputs``, the `HiddenCodes` of the batch."""
        image_BCHW = to_model_range(batch[self.columns[0]])
        keep_B = random.uniform("keep") >= self.config.text_drop
        conditions = self._conditions(batch, random, image_BCHW.shape[-2:])
        with torch.no_grad():
            codes_Bhw = self.autoencoder.to(image_BCHW.device).encode(image_BCHW)
        hidden_Bhw = hide_at_random(spread_times(random), random.uniform("order", *codes_Bhw.shape[1:]))
        return batch | {"inputs": HiddenCodes(codes_Bhw, hidden_Bhw, conditions._replace(text_keep_B=keep_B))}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean cross-entropy (scalar, nats), and ``accuracy``, the share of hidden codes that are right."""
        loss, hits = self._predict(model, batch, random)
        return loss, {"accuracy": hits[0] / hits[1]}

    def validate(
        self, model: Callable[..., Any], batch: Batch, random: SampleRandom
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """As `loss`."""
        loss, hits = self._predict(model, batch, random)
        return loss, {"accuracy": hits}

    def _predict(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, Tensor]:
        """Returns the mean loss, and the numbers of hidden codes that are likeliest and of all (2,)."""
        inputs: HiddenCodes = (batch if "inputs" in batch else self.prepare(batch, random))["inputs"]
        codes_Bhw, hidden_Bhw = inputs.codes_Bhw, inputs.hidden_Bhw
        shown_Bhw = hide_codes(codes_Bhw, hidden_Bhw, self.count)
        logits_BKhw: Tensor = model(shown_Bhw, shown_log_ratio(hidden_Bhw), inputs.conditions)
        hit_Bhw = (logits_BKhw.detach().argmax(1) == codes_Bhw) & hidden_Bhw
        loss_B = masked_cross_entropy(logits_BKhw, codes_Bhw, hidden_Bhw, self.config.label_smoothing)
        return loss_B.mean(), torch.stack([hit_Bhw.sum(), hidden_Bhw.sum()]).float()

    @torch.no_grad()
    def sample_grid(self, weights: dict[str, Tensor], batch: Batch, seed: int) -> np.ndarray:
        """Returns refinements of the true small images of a batch above the true images, uint8 RGB (2H, n W, 3)."""
        true_BHWC = batch[self.columns[0]]
        device = true_BHWC.device
        with device:
            model = self.build()
        model.load_state_dict(weights)
        model.eval()
        random = SampleRandom.of_batch(seed, -1, batch)
        conditions = self._conditions(batch, random, true_BHWC.shape[1:3])
        if not self.config.reads_text():
            conditions = conditions._replace(text_keep_B=torch.zeros(len(true_BHWC), dtype=torch.bool, device=device))
        codes_Bhw = self.autoencoder.to(device).encode(to_model_range(true_BHWC))  # for their shape; all are hidden

        def predict(shown_Bhw: Tensor, ratio_B: Tensor) -> Tensor:
            with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext():
                logits_BKhw: Tensor = model(shown_Bhw, ratio_B, conditions)
            return logits_BKhw.float()

        hidden_Bhw, none = torch.ones_like(codes_Bhw, dtype=torch.bool), torch.zeros_like(codes_Bhw)
        codes_Bhw = decode_codes(predict, none, hidden_Bhw, self.count, GRID_ROUNDS, 0.0, lambda number: none.float())
        refined = to_pixels(self.autoencoder.decode(codes_Bhw))
        rows = [torch.cat(list(images), dim=1) for images in (refined, true_BHWC)]
        return torch.cat(rows).cpu().numpy()

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the stage, with the autoencoder in it, as `train.models.export.load_stage` reads it."""
        frozen = {f"autoencoder.{name}": tensor.cpu() for name, tensor in self.autoencoder.state_dict().items()}
        diffusion = self.config.diffusion.model_dump(mode="json")
        save_stage(folder, weights | frozen, self.refiner_config(), diffusion, step)


def build_refinement_task(config: RefinementTrainingConfig, shards: ShardIndex, autoencoder: str) -> RefinementTask:
    """Returns the task of a stage that trains on ``shards``; ``autoencoder``: a local folder or URL."""
    return RefinementTask(config, read_text_width(shards), storage.local_folder(autoencoder))


def train_refinement(
    index: str,
    validate: bool,
    autoencoder: str,
    config: RefinementTrainingConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Trains a stage on this rank from pack shards and their embedding shards; ``autoencoder``: a local folder or URL.

    The other arguments and the result are those of `train.tasks.diffusion.train_diffusion`.
    """
    shards = ShardIndex.read(index)
    task = build_refinement_task(config, shards, autoencoder)
    return train_on_pack(task, shards, validate, config, folder, seed, mix)
