"""A frozen text encoder: captions to token embeddings at their true length.

Legend: B captions of a batch, L tokens of one of them, end-of-sequence token included, T tokens of all, D channels.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError

from dataprep.schema import UserError
from dataprep.torchvision_operators import declare_torchvision_operators

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
T5_TYPES = ("t5", "mt5", "umt5")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
# Endings of the class that a folder says it is of: these read left to right, or no text at all.
NOT_ENCODERS = ("ForCausalLM", "LMHeadModel", "ForImageClassification", "ForObjectDetection", "ForCTC")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Encoded(NamedTuple):
    """The captions of one batch: ``indices`` says which, ``tokens_TD`` holds their tokens one caption after another."""

    indices: list[int]
    lengths: list[int]
    tokens_TD: np.ndarray  # float32


class TextEncoder:
    """A frozen encoder with its tokenizer; build it with `from_folder`.

    ``max_length`` is what was asked for, or what the model can read where that is less.
    """

    def __init__(self, model: Any, tokenizer: Any, max_length: int, device: str, token_budget: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length = min(max_length, readable_tokens(model, tokenizer))
        self.device, self.token_budget = device, token_budget
        self.dim = int(getattr(model.config, "d_model", None) or model.config.hidden_size)

    @classmethod
    def from_folder(
        cls,
        path_or_name: str,
        dtype: str = "float32",
        max_length: int = 256,
        device: str = "cpu",
        token_budget: int = 8192,
    ) -> TextEncoder:
        """Loads a T5, mT5, umT5 or BERT-like encoder from a local folder or by its hub name.

        ``dtype`` is float32, bfloat16 or float16 (not for T5, whose activations overflow it). ``max_length`` bounds
        the tokens of a caption, ``token_budget`` the tokens of a batch, padding included. Attention is PyTorch's fused
        one (SDPA) wherever transformers has it for the model. Raises UserError for a folder or name that does not give
        an encoder of text, with all its weights and a tokenizer.
        """
        if dtype not in DTYPES:
            raise UserError(f"encoder dtype {dtype!r} is not one of {', '.join(DTYPES)}")
        local = check_encoder(path_or_name)
        declare_torchvision_operators()  # transformers imports torchvision
        from transformers import AutoConfig, AutoTokenizer

        try:
            config = AutoConfig.from_pretrained(path_or_name, local_files_only=local)
            if config.model_type in T5_TYPES and dtype == "float16":
                raise UserError(f"encoder dtype float16 overflows in {config.model_type}; set bfloat16 or float32")
            model, info = _model_class(config.model_type).from_pretrained(
                path_or_name, dtype=DTYPES[dtype], local_files_only=local, output_loading_info=True
            )
            tokenizer = AutoTokenizer.from_pretrained(path_or_name, local_files_only=local)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise UserError(
                f"encoder {path_or_name!r} cannot be loaded ({_first_line(error)}); check name or folder"
            ) from error
        # transformers fills in missing weights with random numbers and carries on.
        if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
            raise UserError(
                f"encoder {path_or_name!r} lacks weights ({missing[0]}, {len(missing)} in all); give a whole one"
            )
        if getattr(config, "is_encoder_decoder", False) and config.model_type not in T5_TYPES:
            model = model.get_encoder()
        model.requires_grad_(False).eval()
        check_reads_both_ways(path_or_name, model)
        return cls(model.to(device), tokenizer, max_length, device, token_budget)

    def tokenize(self, captions: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids of each caption, end token included, cut to max_length; and how many captions were cut."""
        if not captions:
            return [], 0
        ids = self.tokenizer(list(captions), truncation=False, verbose=False)["input_ids"]
        long = [index for index, tokens in enumerate(ids) if len(tokens) > self.max_length]
        if long:  # let the tokenizer cut: it keeps its end token
            texts = [captions[index] for index in long]
            cut = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
            for index, tokens in zip(long, cut, strict=True):
                ids[index] = tokens
        return ids, len(long)

    def beyond(self, caption: str) -> str:
        """The end of ``caption``, whole words, that does not fit into max_length; empty where all of it does."""
        ids = self.tokenizer(caption, truncation=False, verbose=False)["input_ids"]
        if len(ids) <= self.max_length:
            return ""
        if not self.tokenizer.is_fast:  # knows no offsets
            return str(self.tokenizer.decode(ids[self.max_length - 1 :], skip_special_tokens=True))
        cut = self.tokenizer(caption, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        end = max((stop for _, stop in cut["offset_mapping"]), default=0)
        if (half := re.search(r"\w+$", caption[:end], re.ASCII)) and re.match(r"\w", caption[end:], re.ASCII):
            end = half.start()
        return caption[end:].strip()

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Embeddings of ``captions`` in their order: float32 (L_i, D) each, without padding.

        Each distinct caption is computed once, in batches of like length within the token budget; captions that
        recur share one array.
        """
        distinct = list(dict.fromkeys(captions))
        ids, _ = self.tokenize(distinct)
        embeddings = dict(zip(distinct, self.encode_ids(ids), strict=True))
        return [embeddings[caption] for caption in captions]

    def encode_ids(self, ids: Sequence[list[int]]) -> list[np.ndarray]:
        """Embeddings of token id lists: float32 (L_i, D) each, in their order."""
        result: list[np.ndarray] = [np.zeros((0, self.dim), np.float32)] * len(ids)
        for batch in self.batches(ids):
            parts = np.split(batch.tokens_TD, np.cumsum(batch.lengths)[:-1])
            for index, tokens_LD in zip(batch.indices, parts, strict=True):
                result[index] = tokens_LD
        return result

    @torch.inference_mode()
    def batches(self, ids: Sequence[list[int]]) -> Iterator[Encoded]:
        """Embeddings of token id lists, batch by batch, captions of like length together; empty lists are left out."""
        for indices in length_batches([len(tokens) for tokens in ids], self.token_budget):
            lengths = [len(ids[index]) for index in indices]
            mask_BL = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
            ids_BL = torch.full(mask_BL.shape, self.tokenizer.pad_token_id or 0)
            ids_BL[mask_BL] = torch.tensor([token for index in indices for token in ids[index]])
            mask_BL = mask_BL.to(self.device)
            output = self.model(input_ids=ids_BL.to(self.device), attention_mask=mask_BL.long())
            # Padding is dropped before the copy to the CPU, and floats are widened after it: fewer bytes to move.
            yield Encoded(indices, lengths, output.last_hidden_state[mask_BL].cpu().float().numpy())


def length_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Indices grouped into batches of like length, each at most ``token_budget`` tokens once padded, or one caption.

    Sorted by length, then by position, so the batches are a pure function of the lengths. Empty ones are left out.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if lengths[index] == 0:
            continue
        # In ascending order the newest member is the longest, so it says what the batch would be padded to.
        if batches and (len(batches[-1]) + 1) * lengths[index] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _model_class(model_type: str) -> Any:
    """The transformers class to load: for T5 the encoder alone, so that the decoder's weights stay out of memory."""
    from transformers import AutoModel, MT5EncoderModel, T5EncoderModel, UMT5EncoderModel

    return {"t5": T5EncoderModel, "mt5": MT5EncoderModel, "umt5": UMT5EncoderModel}.get(model_type, AutoModel)


def check_encoder(path_or_name: str) -> bool:
    """Whether ``path_or_name`` is a local folder (checked for its files); False for what may be a hub name."""
    folder = Path(path_or_name)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in WEIGHTS):
            raise UserError(
                f"encoder {path_or_name!r}: the folder has no weights (model.safetensors); give a saved model"
            )
        if not (folder / "config.json").is_file():
            raise UserError(f"encoder {path_or_name!r}: the folder has no config.json; give a saved model")
        _check_config(path_or_name, folder / "config.json")
        if not any((folder / name).is_file() for name in TOKENIZERS):
            raise UserError(
                f"encoder {path_or_name!r}: the folder has no tokenizer (tokenizer.json); save it there too"
            )
        return True
    if folder.exists() or not HUB_NAME.fullmatch(path_or_name):
        raise UserError(
            f"encoder {path_or_name!r} is not a folder and not a hub name such as google/t5-v1_1-small; check it"
        )
    return False


def _check_config(path_or_name: str, file: Path) -> None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"encoder {path_or_name!r}: its config.json is not JSON; give a saved model") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError(f"encoder {path_or_name!r}: its config.json names no model_type; give a transformers model")
    names = config.get("architectures") or []
    if names and all(name.endswith(NOT_ENCODERS) for name in names):
        raise UserError(f"encoder {path_or_name!r} is a {names[0]}, no text encoder; give a T5- or BERT-type model")


@torch.inference_mode()
def check_reads_both_ways(path_or_name: str, model: Any) -> None:
    """Raises UserError for a model that is fed no text, or whose first token does not see the last one."""
    if "input_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"encoder {path_or_name!r} ({model.config.model_type}) takes no text; give a T5- or BERT-type model"
        )
    try:
        ids = torch.tensor([[2, 3, 4], [2, 3, 5]]) % model.get_input_embeddings().num_embeddings
        states_BLD = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise UserError(
            f"encoder {path_or_name!r} ({model.config.model_type}) does not encode text alone ({_first_line(error)}); "
            "give a T5- or BERT-type model"
        ) from error
    if torch.equal(states_BLD[0, 0], states_BLD[1, 0]):
        raise UserError(
            f"encoder {path_or_name!r} ({model.config.model_type}) reads from left to right only: its first tokens "
            "know nothing of the last; give a T5- or BERT-type model"
        )


def readable_tokens(model: Any, tokenizer: Any) -> int:
    """How many tokens the model can read: for a T5 as many as one likes, else as many as it has places for."""
    if model.config.model_type in T5_TYPES:
        return int(1e9)
    places = getattr(model.config, "max_position_embeddings", None) or int(1e9)
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if (padding := getattr(embeddings, "padding_idx", None)) is not None:  # RoBERTa's count from there
        places -= padding + 1
    return int(min(places, tokenizer.model_max_length))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
