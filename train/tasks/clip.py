"""The task of a small CLIP: contrastive learning on the run's own pairs (Radford et al. 2021, figure 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer

from dataprep.schema import UserError
from train.data import Batch, SampleRandom
from train.models.clip import ClipModelConfig, build_clip, save_clip, to_clip_range, token_ids

MAX_SCALE = 100.0  # the paper's bound on the inverse temperature


class ClipTaskConfig(ClipModelConfig):
    """The two towers, and how they are trained."""

    flip: bool = Field(False, description="mirror half of the images; off, since captions speak of left and right")
    shift: int = Field(3, ge=0, description="images are shifted by up to so many pixels, edges repeated")


class ClipTask:
    """Contrastive learning for the training loop; ``tokenizer`` is a folder or hub name."""

    def __init__(self, config: ClipTaskConfig, tokenizer: str) -> None:
        self.config = config
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(f"clip.train: no tokenizer in {tokenizer!r}; give the text encoder's folder") from error
        if self.tokenizer.eos_token_id is None or self.tokenizer.pad_token_id is None:
            raise UserError(f"clip.train: the tokenizer of {tokenizer!r} has no end or padding token; take a T5's")
        self.columns = (f"pixels_{config.image_size}",)

    def build(self) -> nn.Module:
        """A fresh CLIP."""
        return build_clip(self.config, len(self.tokenizer), self.tokenizer.eos_token_id, self.tokenizer.pad_token_id)

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Symmetric cross-entropy over the pairs of all ranks; equal captions count as equally right. And accuracy."""
        image_BCHW = self._augment(to_clip_range(batch[self.columns[0]]), random)
        ids_BL = token_ids(self.tokenizer, batch["caption"], self.config.context_length).to(image_BCHW.device)
        image_BD, text_BD, scale = model(image_BCHW, ids_BL)
        image_ND, text_ND, ids_NL = gathered(image_BD.float()), gathered(text_BD.float()), gathered(ids_BL)
        logits_NN = whole_gradient(scale.float()).clamp(max=MAX_SCALE) * image_ND @ text_ND.T
        same_NN = (ids_NL[:, None] == ids_NL[None]).all(-1).float()
        target_NN = same_NN / same_NN.sum(1, keepdim=True)
        whole = (functional.cross_entropy(logits_NN, target_NN) + functional.cross_entropy(logits_NN.T, target_NN)) / 2
        right = same_NN[torch.arange(len(logits_NN), device=same_NN.device), logits_NN.argmax(1)].mean()
        return summed_over_ranks(whole), {"accuracy": right}

    def _augment(self, image_BCHW: Tensor, random: SampleRandom) -> Tensor:
        shift = self.config.shift
        if shift:
            size = image_BCHW.shape[-1]
            padded = functional.pad(image_BCHW, [shift] * 4, mode="replicate")
            offsets = (random.uniform("shift", 2) * (2 * shift + 1)).long().tolist()
            image_BCHW = torch.stack(
                [image[:, y : y + size, x : x + size] for image, (y, x) in zip(padded, offsets, strict=True)]
            )
        if self.config.flip:
            flipped_B = (random.uniform("flip") < 0.5).to(image_BCHW.device)
            image_BCHW = torch.where(flipped_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
        # Convolutions on a CPU and on tensor cores are quicker so.
        return image_BCHW.contiguous(memory_format=torch.channels_last)

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the model as `train.models.clip.load_clip` reads it."""
        fields = set(ClipModelConfig.model_fields)
        save_clip(folder, weights, ClipModelConfig(**self.config.model_dump(include=fields)), self.tokenizer)


def gathered(value: Tensor) -> Tensor:
    """The rows of all ranks in rank order; gradients flow to this rank's own rows."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.detach().contiguous())
    parts[dist.get_rank()] = value
    return torch.cat(parts)


def whole_gradient(scale: Tensor) -> Tensor:
    """``scale`` with its gradient divided by the number of ranks: every rank has the whole of it, not a share."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    return scale.detach() + (scale - scale.detach()) / world


def summed_over_ranks(loss: Tensor) -> Tensor:
    """``loss`` with its gradient scaled by the number of ranks.

    Every rank computes the whole loss, but its gradient only through its own rows; the engine averages over the ranks,
    and this makes a sum of it, which is the gradient of the whole loss.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    return loss.detach() + world * (loss - loss.detach())
