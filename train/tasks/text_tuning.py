"""Task `text_tuning`: new words of a text encoder, or LoRA over it, learned through a frozen image model.

Textual inversion (Gal et al. 2022, arXiv 2208.01618, equation 2): the denoising loss, minimised over the vectors of the
new words alone. The export is the encoder with them, a transformers folder; image models learn on its embeddings.
Legend: B batch, L tokens of the longest caption.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dataprep.io import storage
from dataprep.io.device_copy import send
from dataprep.io.errors import UserError
from dataprep.io.pack_format import pixels_column
from dataprep.text.config import TOKENS_FILE
from dataprep.text.encoder import TextEncoder
from dataprep.text.learned_tokens import (
    add_words,
    mean_vector,
    place_vectors,
    save_encoder_folder,
    save_tokens,
)
from train.diffusion.config import DiffusionConfig
from train.diffusion.objective import NoisedImages, denoising_loss, noise_images, to_model_range
from train.loader.config import LoaderConfig
from train.loader.loader import TRAIN, VALIDATION, Batch, Loader
from train.loader.mix_config import DataMix
from train.loader.reader import Reader
from train.loader.sampler import SampleRandom
from train.loader.shard_index import ShardIndex
from train.loop import train
from train.models.backbones import build_denoiser, find_stage_folder, read_folder_stage
from train.models.export import load_stage, read_stage_settings
from train.models.tuned_text import TunedText
from train.tasks.denoising import spread_times
from train.tasks.text_tuning_config import TextTuningConfig

ENCODER_PREFIX = "text_encoder."  # of the encoder's tensors in `TunedText`


@dataclass(frozen=True)
class TextOptions:
    """The encoder, and how the run's `embed` reads captions with it."""

    encoder: str
    max_length: int = 256
    pad: bool = False
    lowercase: bool = False

    def load(self, dtype: str = "float32") -> TextEncoder:
        """Loads the encoder on the CPU."""
        folder = storage.local_folder(self.encoder)
        return TextEncoder.from_folder(folder, dtype, self.max_length, pad=self.pad, lowercase=self.lowercase)


class TextTuningData(NamedTuple):
    """What the loss needs of a batch besides the networks."""

    noised: NoisedImages
    ids_BL: Tensor
    mask_BL: Tensor  # int64, 1 at tokens
    kept_BL: Tensor  # bool, tokens that the image model reads


class TextTuningTask:
    """Learned words and LoRA for the training loop; ``stage`` is the folder of the image model."""

    component = "text_encoder"

    def __init__(self, config: TextTuningConfig, text: TextOptions, stage: str) -> None:
        self.config, self.text = config, text
        self.stage = find_stage_folder(stage) or storage.local_folder(stage)
        self.columns = (pixels_column(config.resolution),)
        self.encoder = text.load()
        self.starts = [mean_vector(self.encoder, known) for known in config.tokens.values()]
        self.unit = float(self.encoder.model.get_input_embeddings().weight.detach().float().std())
        self.ids = add_words(self.encoder, list(config.tokens))
        self.build_encoder = partial(self.encoder.model.__class__, self.encoder.model.config)
        self.encoder.model = None  # what is left serves as tokenizer; `build` loads the network

    @cached_property
    def diffusion(self) -> DiffusionConfig:
        """The image model's diffusion process."""
        folder = read_folder_stage(self.stage)
        return DiffusionConfig(**(folder.diffusion if folder else read_stage_settings(self.stage)[1]["diffusion"]))

    def build(self) -> nn.Module:
        """Returns the networks, frozen but for the new words, which begin as the words that the config names."""
        denoiser, _ = load_stage(self.stage)
        if denoiser.config.lowres:
            raise UserError(f"text_tuning.model={self.config.model}: enlarges images; name the base stage, RUN:STAGE")
        # Matrices of an adapter have the type of the layers beside them, and learn in float32.
        half = self.config.adapter is None and torch.cuda.is_available()
        encoder = self.text.load("bfloat16" if half else "float32")
        if denoiser.config.text_dim != encoder.dim:
            raise UserError(
                f"text_tuning.model={self.config.model}: reads text {denoiser.config.text_dim} wide, the encoder's is "
                f"{encoder.dim}; name the encoder that it was trained with in encoder.model"
            )
        start_ND = torch.stack(self.starts) if self.starts else None
        return TunedText(encoder.model, cast(nn.Module, denoiser), self.ids, start_ND, self.unit)

    def build_random(self) -> nn.Module:
        """Returns networks of the same shapes with random weights."""
        folder = read_folder_stage(self.stage)
        denoiser = build_denoiser(folder.model if folder else read_stage_settings(self.stage)[0])
        start_ND = torch.zeros(len(self.ids), self.encoder.dim) if self.ids else None
        return TunedText(self.build_encoder(), denoiser, self.ids, start_ND, self.unit)

    def adapted_part(self, model: nn.Module) -> nn.Module:
        """Returns the text encoder in ``model``, which an adapter is for."""
        return cast(TunedText, model).text_encoder

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``inputs``, the `TextTuningData` of the batch."""
        x0_BCHW = to_model_range(batch[self.columns[0]])
        noise_BCHW = random.normal("noise", *x0_BCHW.shape[1:])
        noised = noise_images(x0_BCHW, spread_times(random), noise_BCHW, self.diffusion)
        padded = self.encoder.pad_ids(self.encoder.tokenize(batch["caption"])[0])
        kept_BL = torch.ones_like(padded.mask_BL) if self.text.pad else padded.mask_BL
        parts = (send(part, str(random.device)) for part in (padded.ids_BL, padded.mask_BL, kept_BL.bool()))
        return batch | {"inputs": TextTuningData(noised, *parts)}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean weighted denoising loss (scalar), and ``x0_mse``, the error of the clean image."""
        inputs: TextTuningData = (batch if "inputs" in batch else self.prepare(batch, random))["inputs"]

        def predict(x_BCHW: Tensor, log_snr_B: Tensor) -> Tensor:
            output_BCHW: Tensor = model(x_BCHW, log_snr_B, inputs.ids_BL, inputs.mask_BL, inputs.kept_BL)
            return output_BCHW

        loss_B, x0_hat_BCHW = denoising_loss(predict, inputs.noised, self.diffusion)
        return loss_B.mean(), {"x0_mse": (x0_hat_BCHW.clamp(-1, 1) - inputs.noised.x0_BCHW).square().mean()}

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes the encoder with the new words and the adapter in it, and the words alone as `TOKENS_FILE`."""
        tuned = self.text.load()
        if self.config.adapter is not None:
            start = len(ENCODER_PREFIX)
            own = {name[start:]: value for name, value in weights.items() if name.startswith(ENCODER_PREFIX)}
            tuned.model.load_state_dict(own)
        tuned.tokenizer = self.encoder.tokenizer
        if self.ids:
            vectors_ND = weights["tokens"].float() * self.unit
            place_vectors(tuned, dict(zip(self.ids, vectors_ND, strict=True)))
            save_tokens(Path(folder) / TOKENS_FILE, dict(zip(self.config.tokens, vectors_ND, strict=True)))
        save_encoder_folder(tuned, folder)


def train_text_tuning(
    index: str,
    validate: bool,
    text: TextOptions,
    stage: str,
    config: TextTuningConfig,
    folder: str,
    seed: int,
    mix: DataMix = DataMix(),  # noqa: B008 (frozen)
) -> dict[str, Any]:
    """Tunes the text encoder on this rank, from pack shards alone; ``index`` and ``mix`` as in `train_diffusion`."""
    data = Reader(ShardIndex.read(index), LoaderConfig(), mix)

    def make_loader(split: str) -> Loader:
        return Loader.from_reader(data, split, seed, config.batch_size)

    task = TextTuningTask(config, text, stage)
    return train(task, config, make_loader(TRAIN), folder, seed, make_loader(VALIDATION) if validate else None)
