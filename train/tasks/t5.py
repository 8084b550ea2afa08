"""The task of a small T5: a tokenizer learned from the captions, then denoising (Raffel et al. 2020, 3.1 and 3.3.1).

Used where no pretrained encoder is to be had. The export is an ordinary transformers folder of the encoder alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, T5Config

from dataprep.schema import Config, UserError
from dataprep.torchvision_operators import declare_torchvision_operators
from train.data import Batch, SampleRandom

PAD, EOS, UNK = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as in T5
PAD_ID, EOS_ID = 0, 1
IGNORE = -100  # label of a position that has no loss
# Scripts without spaces: every character is a word of its own, so that no token holds half a sentence.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}]"


class T5TaskConfig(Config):
    """A small T5 and how its text is corrupted."""

    vocabulary: int = Field(2000, ge=300, description="token types at most, sentinels left out")
    tokenizer_captions: int = Field(1_000_000, ge=1, description="captions that the tokenizer is learned from, at most")
    sentinels: int = Field(32, ge=1, description="sentinel tokens: at most so many masked spans a caption")
    d_model: int = Field(128, ge=8, description="width of the embeddings")
    heads: int = Field(4, ge=1, description="attention heads")
    d_ff: int = Field(256, ge=8, description="width of the feed-forward layers")
    layers: int = Field(3, ge=1, description="encoder layers")
    decoder_layers: int = Field(1, ge=1, description="decoder layers; the decoder is thrown away in the end")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout of the network")
    max_tokens: int = Field(128, ge=8, description="captions are cut to so many tokens in pretraining")
    target: Literal["spans", "whole"] = Field(
        "whole", description="what the decoder spells: the masked spans alone, or the whole caption"
    )
    noise_density: float = Field(0.3, gt=0, lt=1, description="share of the tokens that is masked; captions are short")
    mean_span: float = Field(1.5, ge=1, description="mean length of a masked span, in tokens")


def train_tokenizer(captions: Sequence[str], config: T5TaskConfig) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with T5's special tokens: pad 0, end 1 (ends every text), unk 2, sentinels last.

    Any text is covered, through bytes if need be. A pure function of the captions. UserError where there are none.
    """
    if not any(captions):
        raise UserError("encoder.pretrain: there are no captions to learn from; loosen the filters")
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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNK,
        additional_special_tokens=sentinels,
    )


class T5Task:
    """Denoising for the training loop, on batches of captions (`train.data.CaptionLoader`)."""

    def __init__(self, config: T5TaskConfig, captions: Sequence[str]) -> None:
        self.config = config
        self.tokenizer = train_tokenizer(captions, config)
        self.first_sentinel = int(self.tokenizer.convert_tokens_to_ids("<extra_id_0>"))

    def model_config(self) -> T5Config:
        """transformers' config of the model."""
        config = self.config
        if config.d_model % config.heads:
            raise UserError(f"d_model={config.d_model}: not a multiple of heads={config.heads}; change one")
        return T5Config(
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
        """A fresh T5ForConditionalGeneration."""
        declare_torchvision_operators()
        from transformers import T5ForConditionalGeneration

        return T5ForConditionalGeneration(self.model_config())

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the target, a mean over each caption's tokens, then over captions; and accuracy."""
        ids = self.tokenizer(batch["caption"], truncation=True, max_length=self.config.max_tokens)["input_ids"]
        pairs = [self.corrupt(row[:-1], seed) for row, seed in zip(ids, random.seeds("spans"), strict=True)]
        device = batch["index"].device
        source_BL = _pad([pair.source for pair in pairs], PAD_ID).to(device)
        target_BT = _pad([pair.target for pair in pairs], IGNORE).to(device)
        start_B1 = torch.full_like(target_BT[:, :1], PAD_ID)
        logits_BTV = model(
            input_ids=source_BL,
            attention_mask=source_BL != PAD_ID,
            decoder_input_ids=torch.cat([start_B1, target_BT[:, :-1].clamp(min=0)], dim=1),
            use_cache=False,
        ).logits
        loss_BT = functional.cross_entropy(
            logits_BTV.float().transpose(1, 2), target_BT, ignore_index=IGNORE, reduction="none"
        )
        known_BT = target_BT != IGNORE
        right = (logits_BTV.argmax(-1) == target_BT)[known_BT].float().mean()
        return (loss_BT.sum(1) / known_BT.sum(1)).mean(), {"accuracy": right}

    def corrupt(self, ids: Sequence[int], seed: int) -> Corrupted:
        """Masks random spans of a caption (without its end token): each becomes a sentinel; the target spells them.

        With ``target`` "whole" it spells the caption (the BERT-style objective, Raffel et al. 2020, 3.3.1): then the
        encoder cannot forget which of two words stood there that are at home in the same places, as colours are.
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
        spelled = target if self.config.target == "spans" else ids
        return Corrupted([*source, *ids[end:], EOS_ID], [*spelled, EOS_ID])

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes encoder and tokenizer as transformers' T5EncoderModel and AutoTokenizer load them."""
        declare_torchvision_operators()
        from transformers import T5EncoderModel

        model = T5EncoderModel(self.model_config())
        names = set(model.state_dict())
        encoder = {name: value for name, value in weights.items() if name in names}
        missing = model.load_state_dict(encoder, strict=False).missing_keys
        assert set(missing) <= {"encoder.embed_tokens.weight"}, missing  # tied to shared.weight
        model.config.architectures = ["T5EncoderModel"]
        model.config.save_pretrained(folder)
        # The tied copy is left out, as transformers does.
        stored = {name: encoder[name].contiguous() for name in sorted(set(encoder) - {"encoder.embed_tokens.weight"})}
        save_file(stored, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)


class Corrupted(NamedTuple):
    """What the encoder reads and what the decoder is to say, as token ids."""

    source: list[int]
    target: list[int]


def random_spans(length: int, config: T5TaskConfig, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Disjoint, not adjacent spans (start, stop) that cover the noise density of ``length`` tokens, at least one."""
    if length == 0:
        return []
    masked = min(max(1, round(length * config.noise_density)), max(1, length - 1))
    kept = length - masked
    count = min(max(1, round(masked / config.mean_span)), masked, kept + 1, config.sentinels)
    sizes = _partition(masked, count, rng)
    # Gaps: one before, one after and one between each two; only those between must not be empty.
    gaps = _partition(kept + 2, count + 1, rng)
    gaps[0] -= 1
    gaps[-1] -= 1
    spans, at = [], 0
    for gap, size in zip(gaps, sizes, strict=False):
        spans.append((at + gap, at + gap + size))
        at += gap + size
    return spans


def _partition(total: int, parts: int, rng: np.random.Generator) -> list[int]:
    """``total`` as a sum of ``parts`` positive integers, every composition equally likely."""
    cuts = sorted(int(cut) + 1 for cut in rng.choice(total - 1, parts - 1, replace=False)) if parts > 1 else []
    edges = [0, *cuts, total]
    return [after - before for before, after in itertools.pairwise(edges)]


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Rows of ids as int64 (B, longest), filled up with ``value``."""
    out = torch.full((len(rows), max(len(row) for row in rows)), value, dtype=torch.long)
    for target, row in zip(out, rows, strict=True):
        target[: len(row)] = torch.tensor(row)
    return out
