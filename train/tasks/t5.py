"""Task `t5`: a small T5, its tokenizer trained on the captions, then denoising (Raffel et al. 2020, 3.1 and 3.3.1).

For runs without a pretrained encoder. The export is a transformers folder of the encoder alone. Shape legend: B batch,
L source tokens, T target tokens, V vocabulary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.device_copy import send
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from train.loader.loader import Batch, CaptionLoader
from train.loader.sampler import SampleRandom
from train.loop import train
from train.tasks.caption_tokens import IGNORE, load_trained_tokenizer, mask_padding, pad_tokens
from train.tasks.t5_config import T5TaskConfig, T5TrainingConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, T5Config

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5
PAD_ID, EOS_ID = 0, 1
SENTINEL = "<extra_id_0>"  # the first of those that masked spans become
# Scripts without spaces: every character is its own word, or one token could cover half a sentence.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"


def train_tokenizer(captions: Sequence[str], config: T5TaskConfig) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer with T5's special tokens: pad 0, end 1 (of every text), unk 2, sentinels last.

    Covers any text by falling back to bytes. A pure function of the captions; raises UserError where there are none.
    """
    if not any(captions):
        raise UserError("encoder.pretrain: there are no captions to train on; loosen the filters")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Strip()])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(UNSPACED), "isolated"), words])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary,
        min_frequency=2,
        special_tokens=[PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions[: config.tokenizer_captions], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, EOS_ID)])
    sentinels = [f"<extra_id_{index}>" for index in range(config.sentinels)]
    return import_transformers(models=False).PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=sentinels,
    )


class T5Task:
    """Denoising for the training loop, on batches of captions (`train.loader.loader.CaptionLoader`)."""

    component = "text_encoder"

    def __init__(self, config: T5TaskConfig, captions: Sequence[str], tokenizer: str | None = None) -> None:
        """``tokenizer``: folder of the one that initial weights were trained with; None: one is trained here."""
        self.config = config
        self.tokenizer = (
            load_trained_tokenizer(tokenizer, SENTINEL, "T5") if tokenizer else train_tokenizer(captions, config)
        )
        self.first_sentinel = int(self.tokenizer.convert_tokens_to_ids(SENTINEL))

    def model_config(self) -> T5Config:
        """Returns the model's config for transformers."""
        config = self.config
        return import_transformers(models=False).T5Config(
            vocab_size=len(self.tokenizer),
            d_model=config.d_model,
            d_kv=config.d_model // config.heads,
            d_ff=config.d_ff,
            num_layers=config.layers,
            num_decoder_layers=config.decoder_layers,
            num_heads=config.heads,
            dropout_rate=config.dropout,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD_ID,
            eos_token_id=EOS_ID,
            decoder_start_token_id=PAD_ID,
            tie_word_embeddings=True,
        )

    def build(self) -> nn.Module:
        """Returns a fresh T5ForConditionalGeneration."""
        return import_transformers().T5ForConditionalGeneration(self.model_config())

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``source_BL`` and ``target_BT``, the token ids of the corrupted captions and of what is missing."""
        ids = self.tokenizer(batch["caption"], truncation=True, max_length=self.config.max_tokens)["input_ids"]
        pairs = [self.corrupt(tokens[:-1], seed) for tokens, seed in zip(ids, random.seeds("spans"), strict=True)]
        source_BL, target_BT = (
            pad_tokens([pair.source for pair in pairs], PAD_ID),
            pad_tokens([pair.target for pair in pairs], IGNORE),
        )
        device = str(random.device)
        return batch | {"source_BL": send(source_BL, device), "target_BT": send(target_BT, device)}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the target's cross-entropy, averaged over tokens per caption, then over captions; and accuracy."""
        prepared = batch if "source_BL" in batch else self.prepare(batch, random)
        source_BL, target_BT = prepared["source_BL"], prepared["target_BT"]
        start_B1 = torch.full_like(target_BT[:, :1], PAD_ID)
        logits_BTV = model(
            input_ids=source_BL,
            attention_mask=mask_padding(source_BL, PAD_ID),
            decoder_input_ids=torch.cat([start_B1, target_BT[:, :-1].clamp(min=0)], dim=1),
            use_cache=False,
        ).logits
        loss_BT = functional.cross_entropy(
            logits_BTV.float().transpose(1, 2), target_BT, ignore_index=IGNORE, reduction="none"
        )
        known_BT = target_BT != IGNORE
        # Not indexed by the mask: the host would wait for the number of known tokens.
        right = ((logits_BTV.argmax(-1) == target_BT) & known_BT).sum() / known_BT.sum()
        return (loss_BT.sum(1) / known_BT.sum(1)).mean(), {"accuracy": right}

    def corrupt(self, ids: Sequence[int], seed: int) -> Corrupted:
        """Replaces random spans of a caption (without its end token) by sentinels; the target lists their tokens.

        With ``target`` "whole" it is the whole caption (the BERT-style objective, Raffel et al. 2020, 3.3.1): the
        encoder then has to keep words that are interchangeable in their context, such as colours.
        """
        rng = np.random.default_rng(seed)
        source: list[int] = []
        target: list[int] = []
        spans = random_spans(len(ids), self.config, rng)
        end = 0
        for index, (start, stop) in enumerate(spans):
            sentinel = self.first_sentinel + index
            source += [*ids[end:start], sentinel]
            target += [sentinel, *ids[start:stop]]
            end = stop
        decoded = target if self.config.target == "spans" else ids
        return Corrupted([*source, *ids[end:], EOS_ID], [*decoded, EOS_ID])

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes encoder and tokenizer for transformers' T5EncoderModel and AutoTokenizer."""
        model = import_transformers().T5EncoderModel(self.model_config())
        names = set(model.state_dict())
        encoder = {name: value for name, value in weights.items() if name in names}
        missing = model.load_state_dict(encoder, strict=False).missing_keys
        assert set(missing) <= {"encoder.embed_tokens.weight"}, missing  # tied to shared.weight
        model.config.architectures = ["T5EncoderModel"]
        model.config.save_pretrained(folder)
        # Without the tied copy, as in transformers.
        stored = {name: encoder[name].contiguous() for name in sorted(set(encoder) - {"encoder.embed_tokens.weight"})}
        save_file(stored, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)


def train_t5(
    captions: Sequence[str], config: T5TrainingConfig, folder: str, seed: int, tokenizer: str | None = None
) -> dict[str, Any]:
    """Pretrains the text encoder on this rank; ``tokenizer`` goes with `TrainConfig.init`."""
    loader = CaptionLoader(captions, seed, config.batch_size)
    return train(T5Task(config, captions, tokenizer), config, loader, folder, seed)


class Corrupted(NamedTuple):
    """Input of the encoder and target of the decoder, as token ids."""

    source: list[int]
    target: list[int]


def random_spans(length: int, config: T5TaskConfig, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Returns disjoint, non-adjacent spans (start, stop) covering `noise_density` of ``length`` tokens; one or more."""
    if length == 0:
        return []
    masked = min(max(1, round(length * config.noise_density)), max(1, length - 1))
    kept = length - masked
    count = min(max(1, round(masked / config.mean_span)), masked, kept + 1, config.sentinels)
    sizes = _partition(masked, count, rng)
    # Gaps before, between and after the spans; only the first and the last may be empty.
    gaps = _partition(kept + 2, count + 1, rng)
    gaps[0] -= 1
    gaps[-1] -= 1
    spans, at = [], 0
    for gap, size in zip(gaps, sizes, strict=False):
        spans.append((at + gap, at + gap + size))
        at += gap + size
    return spans


def _partition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """Splits ``total`` into ``parts`` positive integers, every composition equally likely."""
    cuts = sorted(int(cut) + 1 for cut in rng.choice(total - 1, parts - 1, replace=False)) if parts > 1 else []
    edges = [0, *cuts, total]
    return [after - before for before, after in itertools.pairwise(edges)]
