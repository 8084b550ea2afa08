"""Task `bert`: a small BERT, its tokenizer trained on the captions, then masked tokens (Devlin et al. 2019, 3.1).

For runs without a pretrained encoder. The export is a transformers folder. Shape legend: B batch, L tokens,
V vocabulary.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.device_copy import send
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from train.loader.loader import Batch, CaptionLoader
from train.loader.sampler import SampleRandom
from train.loop import train
from train.tasks.bert_config import BertTaskConfig, BertTrainingConfig
from train.tasks.caption_tokens import IGNORE, load_trained_tokenizer, mask_padding, pad_tokens

if TYPE_CHECKING:
    from transformers import BertConfig, PreTrainedTokenizerFast

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # ids 0 to 4
PAD_ID, CLS_ID, SEP_ID, MASK_ID = 0, 2, 3, 4
KEPT, REPLACED = 0.1, 0.1  # of the tokens to predict: shown as they are, and as another token
PREFIX = "bert."  # of the encoder in BertForMaskedLM


def train_wordpieces(captions: Sequence[str], config: BertTaskConfig) -> PreTrainedTokenizerFast:
    """Trains a WordPiece tokenizer with BERT's special tokens: [PAD] 0, [UNK] 1, [CLS] 2, [SEP] 3, [MASK] 4.

    Lower case, every Chinese character a word. A pure function of the captions; raises UserError where there are none.
    The pieces are those of byte-pair encoding, each at the beginning of a word and inside: the library's own trainer of
    WordPiece numbers them in another order at each call, and every rank trains its own.
    """
    if not any(captions):
        raise UserError("encoder.pretrain: there are no captions to train on; loosen the filters")
    normalizer, captions = normalizers.BertNormalizer(lowercase=True), captions[: config.tokenizer_captions]
    room = (config.vocabulary - len(SPECIAL)) // 2
    counts = Counter(itertools.chain.from_iterable(normalizer.normalize_str(caption) for caption in captions))
    # Of characters that are equally frequent the library would keep any.
    letters = sorted((letter for letter in counts if not letter.isspace()), key=lambda x: (-counts[x], x))[:room]
    merged = Tokenizer(models.BPE())
    merged.normalizer, merged.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(
        vocab_size=room,
        min_frequency=2,
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    merged.train_from_iterator(captions, trainer)
    found = merged.get_vocab()
    pieces = [*SPECIAL, *(form for piece in sorted(found, key=found.__getitem__) for form in (piece, f"##{piece}"))]
    numbers = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=SPECIAL[1]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS_ID), ("[SEP]", SEP_ID)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return import_transformers(models=False).PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=config.max_tokens,
        **dict(zip(names, SPECIAL, strict=True)),
    )


class BertTask:
    """Masked tokens for the training loop, on batches of captions (`train.loader.loader.CaptionLoader`)."""

    component = "text_encoder"

    def __init__(self, config: BertTaskConfig, captions: Sequence[str], tokenizer: str | None = None) -> None:
        """``tokenizer``: folder of the one that initial weights were trained with; None: one is trained here."""
        self.config = config
        self.tokenizer = (
            load_trained_tokenizer(tokenizer, SPECIAL[-1], "BERT") if tokenizer else train_wordpieces(captions, config)
        )
        self.mask_id = int(self.tokenizer.convert_tokens_to_ids(SPECIAL[-1]))
        self.special = frozenset(self.tokenizer.all_special_ids)

    def model_config(self) -> BertConfig:
        """Returns the model's config for transformers."""
        config = self.config
        return import_transformers(models=False).BertConfig(
            vocab_size=len(self.tokenizer),
            hidden_size=config.d_model,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.d_ff,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=config.max_tokens,
            pad_token_id=int(self.tokenizer.pad_token_id),
        )

    def build(self) -> nn.Module:
        """Returns a fresh BertForMaskedLM."""
        return import_transformers().BertForMaskedLM(self.model_config())

    def prepare(self, batch: Batch, random: SampleRandom) -> Batch:
        """Adds ``source_BL`` and ``target_BL``, the masked token ids and those to predict, `IGNORE` elsewhere."""
        ids = self.tokenizer(batch["caption"], truncation=True, max_length=self.config.max_tokens)["input_ids"]
        pairs = [self.mask(tokens, seed) for tokens, seed in zip(ids, random.seeds("masks"), strict=True)]
        source_BL = pad_tokens([pair.source for pair in pairs], int(self.tokenizer.pad_token_id))
        target_BL = pad_tokens([pair.target for pair in pairs], IGNORE)
        device = str(random.device)
        return batch | {"source_BL": send(source_BL, device), "target_BL": send(target_BL, device)}

    def loss(self, model: Callable[..., Any], batch: Batch, random: SampleRandom) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the masked tokens' cross-entropy, averaged per caption, then over captions; and accuracy."""
        prepared = batch if "source_BL" in batch else self.prepare(batch, random)
        source_BL, target_BL = prepared["source_BL"], prepared["target_BL"]
        mask_B11L = mask_padding(source_BL, int(self.tokenizer.pad_token_id))
        logits_BLV = model(input_ids=source_BL, attention_mask=mask_B11L).logits
        loss_BL = functional.cross_entropy(
            logits_BLV.float().transpose(1, 2), target_BL, ignore_index=IGNORE, reduction="none"
        )
        known_BL = target_BL != IGNORE
        # Not indexed by the mask: the host would wait for the number of known tokens.
        right = ((logits_BLV.argmax(-1) == target_BL) & known_BL).sum() / known_BL.sum().clamp(min=1)
        return (loss_BL.sum(1) / known_BL.sum(1).clamp(min=1)).mean(), {"accuracy": right}

    def mask(self, ids: Sequence[int], seed: int) -> Masked:
        """Chooses `noise_density` of a caption's tokens, one or more, and hides them; special tokens stay.

        Of the chosen 80% become [MASK], 10% another token, 10% stay (Devlin et al. 2019, 3.1 and A.1).
        """
        rng, source, target = np.random.default_rng(seed), list(ids), [IGNORE] * len(ids)
        places = [place for place, token in enumerate(ids) if token not in self.special]
        count = min(len(places), max(1, round(len(places) * self.config.noise_density)))
        for place in rng.choice(places, count, replace=False).tolist() if places else []:
            target[place], chance = ids[place], rng.random()
            if chance >= KEPT + REPLACED:
                source[place] = self.mask_id
            elif chance >= KEPT:
                source[place] = int(rng.integers(len(SPECIAL), len(self.tokenizer)))
        return Masked(source, target)

    def export(self, folder: str, weights: dict[str, Tensor], step: int) -> None:
        """Writes encoder and tokenizer for transformers' AutoModel and AutoTokenizer."""
        encoder = {name.removeprefix(PREFIX): value for name, value in weights.items() if name.startswith(PREFIX)}
        model = import_transformers().BertModel(self.model_config(), add_pooling_layer=False)
        model.load_state_dict(encoder)
        model.config.architectures = ["BertModel"]
        model.config.save_pretrained(folder)
        stored = {name: encoder[name].contiguous() for name in sorted(encoder)}
        save_file(stored, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        self.tokenizer.save_pretrained(folder)


class Masked(NamedTuple):
    """Input and target of the network, as token ids of equal length."""

    source: list[int]
    target: list[int]


def train_bert(
    captions: Sequence[str], config: BertTrainingConfig, folder: str, seed: int, tokenizer: str | None = None
) -> dict[str, Any]:
    """Pretrains the text encoder on this rank; ``tokenizer`` goes with `TrainConfig.init`."""
    loader = CaptionLoader(captions, seed, config.batch_size)
    return train(BertTask(config, captions, tokenizer), config, loader, folder, seed)
