"""A frozen text encoder: captions to token embeddings at their true length.

Legend: L tokens of a caption, end-of-sequence token included, D channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from dataprep.schema import UserError
from dataprep.torchvision_operators import declare_torchvision_operators

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
T5_TYPES = ("t5", "mt5", "umt5")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class TextEncoder:
    """A frozen encoder with its tokenizer; build it with `from_folder`."""

    def __init__(self, model: Any, tokenizer: Any, max_length: int, device: str, token_budget: int) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_length, self.device, self.token_budget = max_length, device, token_budget
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
        the tokens of a caption, ``token_budget`` the tokens of a batch, padding included. Raises UserError for a
        folder or name that does not give a model with all its weights and a tokenizer.
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
        model.requires_grad_(False)
        return cls(model.eval().to(device), tokenizer, max_length, device, token_budget)

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

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Embeddings of ``captions`` in their order: float32 (L_i, D) each, without padding.

        Each distinct caption is computed once, in batches of like length within the token budget; captions that
        recur share one array.
        """
        distinct = list(dict.fromkeys(captions))
        ids, _ = self.tokenize(distinct)
        embeddings = dict(zip(distinct, self.encode_ids(ids), strict=True))
        return [embeddings[caption] for caption in captions]

    @torch.inference_mode()
    def encode_ids(self, ids: Sequence[list[int]]) -> list[np.ndarray]:
        """Embeddings of token id lists: float32 (L_i, D) each, in their order."""
        result: list[np.ndarray] = [np.zeros((0, self.dim), np.float32)] * len(ids)
        for batch in length_batches([len(tokens) for tokens in ids], self.token_budget):
            longest = max(len(ids[index]) for index in batch)
            ids_BL = torch.full((len(batch), longest), self.tokenizer.pad_token_id or 0, dtype=torch.long)
            mask_BL = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, index in enumerate(batch):
                length = len(ids[index])
                ids_BL[row, :length] = torch.tensor(ids[index], dtype=torch.long)
                mask_BL[row, :length] = 1
            output = self.model(input_ids=ids_BL.to(self.device), attention_mask=mask_BL.to(self.device))
            states_BLD = output.last_hidden_state.float().cpu().numpy()
            for row, index in enumerate(batch):
                result[index] = states_BLD[row, : len(ids[index])].copy()
        return result


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


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
