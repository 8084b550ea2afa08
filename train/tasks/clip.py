"""Task `clip`: a small CLIP, contrastive learning on the run's own pairs (Radford et al. 2021, figure 3).

Shape legend: B batch of this rank, N batch of all ranks, C channels, H W height and width, L tokens, D embedding width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io import storage
from dataprep.io.device_copy import send
from dataprep.io.errors import UserError
from dataprep.io.pack_format import pixels_column
from train.loader.config import LoaderConfig
from train.loader.loader import Batch, Loader
from train.loader.reader import Reader
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex
from train.loop import train
from train.models.clip import make_text_tower, save_clip, to_clip_range
from train.models.clip_config import ClipModelConfig
from train.models.tokenizer_folder import load_tokenizer
from train.tasks.clip_config import ClipTaskConfig, ClipTrainingConfig

MAX_SCALE = 100.0  # the paper's bound on the inverse temperature


class ClipTask:
    """Contrastive learning for the training loop; ``encoder`` is the folder or hub name of the run's text encoder.

    Of it a trained text tower takes the tokenizer alone.
    """

    component = "clip"

    def __init__(self, config: ClipTaskConfig, encoder: str) -> None:
        self.config, self.text = config, make_text_tower(config, encoder)
        self.columns = (pixels_column(config.image_size),)

    def build(self) -> nn.Module:
        """Returns a fresh CLIP."""
        return self.text.build()

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``image_BCHW``, the augmented images, ``ids_BL``, the captions' tokens, and ``text``, what they say."""
        image_BCHW = self._augment(to_clip_range(batch[self.columns[0]]), random)
        ids_BL = send(self.text.tokenize(batch["caption"]), str(random.device))
        return batch | {"image_BCHW": image_BCHW, "ids_BL": ids_BL, "text": self.text.read(ids_BL)}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns symmetric cross-entropy over the pairs of all ranks, where equal captions all match, and accuracy."""
        prepared = batch if "image_BCHW" in batch else self.prepare(batch, random)
        image_BCHW, ids_BL = prepared["image_BCHW"], prepared["ids_BL"]
        image_BD, text_BD, scale = model(image_BCHW, prepared["text"])
        image_ND, text_ND, ids_NL = gather_ranks(image_BD.float()), gather_ranks(text_BD.float()), gather_ranks(ids_BL)
        logits_NN = bound_scale(share_gradient(scale.float())) * image_ND @ text_ND.T
        same_NN = (ids_NL[:, None] == ids_NL[None]).all(-1).float()
        target_NN = same_NN / same_NN.sum(1, keepdim=True)
        whole = (functional.cross_entropy(logits_NN, target_NN) + functional.cross_entropy(logits_NN.T, target_NN)) / 2
        right = same_NN[torch.arange(len(logits_NN), device=same_NN.device), logits_NN.argmax(1)].mean()
        return sum_gradient(whole), {"accuracy": right}

    def _augment(self, image_BCHW: Tensor, random: SampleRandom) -> Tensor:
        shift = self.config.shift
        if shift:
            size = image_BCHW.shape[-1]
            padded_BCHW = functional.pad(image_BCHW, [shift] * 4, mode="replicate")
            offset_B2 = (random.uniform("shift", 2) * (2 * shift + 1)).long()
            row_BH, column_BW = (offset_B2[:, axis, None] + torch.arange(size, device=random.device) for axis in (0, 1))
            each_B11 = torch.arange(len(offset_B2), device=random.device)[:, None, None]
            # Indexed axes come first: (B, H, W, C), seen as channels second, is channels last in memory.
            image_BCHW = padded_BCHW[each_B11, :, row_BH[:, :, None], column_BW[:, None]].permute(0, 3, 1, 2)
        if self.config.flip:
            flipped_B = random.uniform("flip") < 0.5
            image_BCHW = torch.where(flipped_B[:, None, None, None], image_BCHW.flip(-1), image_BCHW)
        # Faster for convolutions on CPUs and tensor cores.
        return image_BCHW.contiguous(memory_format=torch.channels_last)

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the model for `train.models.clip.load_clip`."""
        fields = set(ClipModelConfig.model_fields)
        save_clip(folder, weights, ClipModelConfig(**self.config.model_dump(include=fields)), self.text)


def train_clip(index: str, encoder: str, config: ClipTrainingConfig, folder: str, seed: int) -> dict[str, Any]:
    """Trains CLIP on this rank from packed pairs.

    ``index`` is the path of their `train.loader.shard_index.ShardIndex`; ``encoder`` is the text encoder's folder
    (maybe a URL) or hub name.
    """
    encoder = storage.local_folder(encoder)
    task = ClipTask(config, encoder)
    if config.init is not None:
        check_vocabulary(config.init.source, load_tokenizer(encoder))
    data = Reader(ShardIndex.read(index), LoaderConfig())
    return train(task, config, Loader.from_reader(data, None, seed, config.batch_size), folder, seed)


def check_vocabulary(source: str, tokenizer: Any) -> None:
    """Raises UserError where initial weights lie beside a tokenizer with other tokens than ``tokenizer``."""
    if not storage.exists(storage.join(source, "tokenizer.json")):
        return
    theirs = load_tokenizer(storage.local_folder(source))
    if theirs.get_vocab() != tokenizer.get_vocab():
        raise UserError(
            f"clip.train.init={source}: was trained with another tokenizer than this run's encoder has; take that "
            "run's encoder (encoder.model), or train CLIP from nothing"
        )


def gather_ranks(value: Tensor) -> Tensor:
    """Returns the rows of all ranks in rank order; gradients flow only to the rows of this rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, value.detach().contiguous())
    parts[dist.get_rank()] = value
    return torch.cat(parts)


def share_gradient(scale: Tensor) -> Tensor:
    """Divides the gradient of ``scale`` by the number of ranks: every rank computes all of it, not a share."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    return scale.detach() + (scale - scale.detach()) / world


class _BoundScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return scale.clamp(max=MAX_SCALE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (scale,), (gradient,) = ctx.saved_tensors, gradients
        return torch.where((scale > MAX_SCALE) & (gradient < 0), 0.0, gradient)


def bound_scale(scale: Tensor) -> Tensor:
    """Clamps ``scale`` to at most `MAX_SCALE`; above it, a gradient that would lower it still passes.

    A plain clamp passes none, so that a scale which a step carries past the bound never comes back. The same as
    clamping the parameter after each step, but for the last step past the bound, and under every ZeRO stage.
    """
    bounded: Tensor = _BoundScale.apply(scale)
    return bounded


def sum_gradient(loss: Tensor) -> Tensor:
    """Multiplies the gradient of ``loss`` by the number of ranks.

    Every rank computes the whole loss, but its gradient only through its own rows. The engine averages over the ranks;
    this turns the average into the sum, which is the gradient of the whole loss.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    return loss.detach() + world * (loss - loss.detach())
