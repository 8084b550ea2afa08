"""A frozen text encoder: captions to token embeddings at their true length.

Legend: B captions of a batch, L tokens of one caption including end of sequence, T tokens of all captions, D channels.
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

from dataprep.io.ahead import read_ahead
from dataprep.io.device_copy import pin, send
from dataprep.io.device_settings import configure_device
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers, silence_load_report
from dataprep.io.pipeline_folder import encoder_folders
from dataprep.io.postponed_imports import COMPILER, postpone_imports

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Encoder-decoder models of which only the encoder is loaded, with relative positions: any length, no float16.
T5_CLASSES = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
VARIANT = re.compile(r"model\.safetensors\.index\.(\w+)\.json|model\.(\w+)\.safetensors")  # as model.fp16.safetensors
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
TOKENIZERS = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "vocab.json")
# Suffixes of the architecture in a config.json: causal models, and models of other inputs than text.
NOT_ENCODERS = ("ForCausalLM", "LMHeadModel", "ForImageClassification", "ForObjectDetection", "ForCTC")
PADDED_AHEAD = 2  # batches of token ids
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class Encoded(NamedTuple):
    """One encoded batch: indices and lengths of its captions, and their concatenated tokens."""

    indices: list[int]
    lengths: list[int]
    tokens_TD: np.ndarray  # float32


class EncodedTokens(NamedTuple):
    """As `Encoded`, with the tokens on the device in the encoder's dtype."""

    indices: list[int]
    lengths: list[int]
    tokens_TD: torch.Tensor


class PaddedIds(NamedTuple):
    """A batch of token ids, ready for the device."""

    lengths: list[int]
    ids_BL: torch.Tensor
    mask_BL: torch.Tensor  # int64, 1 at tokens
    place_T: torch.Tensor  # of each token that is kept among B x L


class TextEncoder:
    """A frozen encoder with its tokenizer; load it with `from_folder`.

    ``max_length`` is the requested maximum, or what the model can read if that is less. ``pad``: each caption's output
    has max_length tokens, padding included, in place of its own length. ``lowercase``: of every text, without blanks
    around it.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        max_length: int,
        device: str,
        token_budget: int,
        pad: bool = False,
        lowercase: bool = False,
    ) -> None:
        self.model, self.tokenizer, self.pad, self.lowercase = model, tokenizer, pad, lowercase
        self.max_length = min(max_length, count_readable_tokens(model, tokenizer))
        self.device, self.token_budget = device, token_budget
        self.dim = int(getattr(model.config, "d_model", None) or model.config.hidden_size)

    @classmethod
    def from_folder(
        cls,
        path_or_name: str,
        dtype: str = "auto",
        max_length: int = 256,
        device: str = "cpu",
        token_budget: int = 8192,
        pad: bool = False,
        lowercase: bool = False,
    ) -> TextEncoder:
        """Loads a T5, mT5, umT5 or BERT-type encoder from a local folder or by hub name.

        A folder in diffusers' layout is one too: its `text_encoder` and `tokenizer` are loaded.

        Args:
            dtype: float32, bfloat16 or float16 (not for T5, whose activations overflow it); auto: bfloat16 on GPUs,
                float32 on CPUs, where it is faster.
            max_length: maximum tokens per caption.
            token_budget: maximum tokens per batch, including padding.
            pad: return the output at all max_length places, padding included.
            lowercase: encode every text in lower case, without blanks around it.

        Raises:
            UserError: not a text encoder with all its weights and a tokenizer.
        """
        dtype = _resolve_dtype(dtype, device)
        configure_device(device)
        local = check_encoder(path_or_name)
        weights, vocabulary = encoder_folders(path_or_name)
        transformers = import_transformers()
        try:
            config = transformers.AutoConfig.from_pretrained(weights, local_files_only=local)
            if config.model_type in T5_CLASSES and dtype == "float16":
                raise UserError(f"encoder dtype float16 overflows in {config.model_type}; set bfloat16 or float32")
            model_class = getattr(transformers, T5_CLASSES.get(config.model_type, "AutoModel"))
            options = {"variant": variant} if (variant := find_variant(weights)) else {}
            # torch imports the compiler to initialise weights that have no memory yet.
            with postpone_imports(COMPILER), silence_load_report():
                model, info = model_class.from_pretrained(
                    weights, dtype=DTYPES[dtype], local_files_only=local, output_loading_info=True, **options
                )
            tokenizer = transformers.AutoTokenizer.from_pretrained(vocabulary, local_files_only=local)
        except UserError:
            raise
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, UnpicklingError) as error:
            raise UserError(
                f"encoder {path_or_name!r} cannot be loaded ({_first_line(error)}); check name or folder"
            ) from error
        # transformers replaces missing weights by random numbers.
        if missing := sorted(key for key in info["missing_keys"] if "pooler" not in key):
            raise UserError(
                f"encoder {path_or_name!r} lacks weights ({missing[0]}, {len(missing)} in all); give a whole one"
            )
        if getattr(config, "is_encoder_decoder", False) and config.model_type not in T5_CLASSES:
            model = model.get_encoder()
        model.requires_grad_(False).eval()
        check_attention(path_or_name, model)
        return cls(model.to(device), tokenizer, max_length, device, token_budget, pad, lowercase)

    def tokenize(self, captions: Sequence[str]) -> tuple[list[list[int]], int]:
        """Returns token ids per caption, including the end token, cut to max_length, and the number of cut captions."""
        if not captions:
            return [], 0
        captions = [self.clean(caption) for caption in captions]
        ids = self.tokenizer(captions, truncation=False, verbose=False)["input_ids"]
        long = [index for index, tokens in enumerate(ids) if len(tokens) > self.max_length]
        if long:  # the tokenizer cuts before its end token
            texts = [captions[index] for index in long]
            cut = self.tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
            for index, tokens in zip(long, cut, strict=True):
                ids[index] = tokens
        return ids, len(long)

    def beyond(self, caption: str) -> str:
        """Returns the end of ``caption``, in whole words, that exceeds max_length; empty if all of it fits."""
        caption = self.clean(caption)
        ids = self.tokenizer(caption, truncation=False, verbose=False)["input_ids"]
        if len(ids) <= self.max_length:
            return ""
        if not self.tokenizer.is_fast:  # has no offsets
            return str(self.tokenizer.decode(ids[self.max_length - 1 :], skip_special_tokens=True))
        cut = self.tokenizer(caption, truncation=True, max_length=self.max_length, return_offsets_mapping=True)
        end = max((stop for _, stop in cut["offset_mapping"]), default=0)
        if (half := re.search(r"\w+$", caption[:end], re.ASCII)) and re.match(r"\w", caption[end:], re.ASCII):
            end = half.start()
        return caption[end:].strip()

    def pieces(self, caption: str) -> list[str]:
        """Returns the text of each token of ``caption``, those that the tokenizer adds included."""
        return [str(self.tokenizer.decode([token])).strip() for token in self.tokenize([caption])[0][0]]

    def clean(self, caption: str) -> str:
        """Returns a caption as the tokenizer reads it."""
        return caption.lower().strip() if self.lowercase else caption

    def encode(self, captions: Sequence[str]) -> list[np.ndarray]:
        """Encodes ``captions`` in their order: float32 (L_i, D) each, without padding; (max_length, D) with ``pad``.

        Each distinct caption is computed once, in batches of similar length within the token budget; repeated captions
        share one array.
        """
        distinct = list(dict.fromkeys(captions))
        ids, _ = self.tokenize(distinct)
        embeddings = dict(zip(distinct, self.encode_ids(ids), strict=True))
        return [embeddings[caption] for caption in captions]

    def encode_ids(self, ids: Sequence[list[int]]) -> list[np.ndarray]:
        """Encodes token id lists in their order: float32 (L_i, D) each."""
        result: list[np.ndarray] = [np.zeros((0, self.dim), np.float32)] * len(ids)
        for batch in self.batches(ids):
            parts = np.split(batch.tokens_TD, np.cumsum(batch.lengths)[:-1])
            for index, tokens_LD in zip(batch.indices, parts, strict=True):
                result[index] = tokens_LD
        return result

    def batches(self, ids: Sequence[list[int]]) -> Iterator[Encoded]:
        """Encodes token id lists in batches of similar length; skips empty lists."""
        for batch in self.device_batches(ids):
            # Widen floats after the copy to the CPU: fewer bytes to copy.
            yield Encoded(batch.indices, batch.lengths, batch.tokens_TD.cpu().float().numpy())

    @torch.inference_mode()
    def device_batches(self, ids: Sequence[list[int]]) -> Iterator[EncodedTokens]:
        """As `batches`, with tokens on the device in the encoder's dtype; does not wait for them to be computed."""
        groups = self._group([len(tokens) for tokens in ids])
        # A thread pads the next batches while this one starts the encoder.
        padded = read_ahead((self.pad_ids([ids[index] for index in indices]) for indices in groups), PADDED_AHEAD)
        for indices, batch in zip(groups, padded, strict=True):
            output = self.model(
                input_ids=send(batch.ids_BL, self.device), attention_mask=send(batch.mask_BL, self.device)
            )
            states_TD = output.last_hidden_state.flatten(0, 1)[send(batch.place_T, self.device)]
            yield EncodedTokens(indices, batch.lengths, states_TD)

    def pad_ids(self, ids: Sequence[list[int]]) -> PaddedIds:
        """Returns a batch of token id lists, padded as the encoder takes them."""
        lengths = [len(tokens) for tokens in ids]
        width = self.max_length if self.pad else max(lengths)
        mask_BL = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
        ids_BL = torch.full(mask_BL.shape, self.tokenizer.pad_token_id or 0)
        ids_BL[mask_BL] = torch.tensor([token for tokens in ids for token in tokens])
        if self.pad:
            lengths, kept_BL = [width] * len(lengths), torch.ones_like(mask_BL)
        else:
            kept_BL = mask_BL
        # Found on the CPU: the device need not be asked where the padding is.
        place_T = kept_BL.flatten().nonzero()[:, 0]
        return PaddedIds(lengths, *(pin(value, self.device) for value in (ids_BL, mask_BL.long(), place_T)))

    def _group(self, lengths: Sequence[int]) -> list[list[int]]:
        """Groups indices into batches; with ``pad`` every caption counts as max_length tokens."""
        if self.pad:
            lengths = [self.max_length if length else 0 for length in lengths]
        return group_by_length(lengths, self.token_budget)


def group_by_length(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Groups indices into batches of similar length, each at most ``token_budget`` padded tokens, or one caption.

    Sorted by length, then position: a pure function of the lengths. Skips captions of length 0.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if lengths[index] == 0:
            continue
        # Lengths ascend, so the newest caption is the longest and determines the padding.
        if batches and (len(batches[-1]) + 1) * lengths[index] <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def find_variant(folder: str) -> str | None:
    """Returns the variant, such as fp16, of a local folder that has its weights as a variant alone; None: as usual."""
    if not Path(folder).is_dir() or any((Path(folder) / name).is_file() for name in WEIGHTS):
        return None
    matches = (VARIANT.fullmatch(path.name) for path in sorted(Path(folder).iterdir()))
    return next((match[1] or match[2] for match in matches if match), None)


def check_encoder(path_or_name: str) -> bool:
    """Returns whether ``path_or_name`` is a local folder, after checking its files; False if it may be a hub name.

    Raises UserError for an incomplete folder and for anything else.
    """
    if Path(path_or_name).is_dir():
        weights, vocabulary = (Path(part) for part in encoder_folders(path_or_name))
        if not any((weights / name).is_file() for name in WEIGHTS) and find_variant(str(weights)) is None:
            raise UserError(
                f"encoder {str(weights)!r}: the folder has no weights (model.safetensors); give a saved model"
            )
        if not (weights / "config.json").is_file():
            raise UserError(f"encoder {str(weights)!r}: the folder has no config.json; give a saved model")
        _check_config(str(weights), weights / "config.json")
        if not any((vocabulary / name).is_file() for name in TOKENIZERS):
            raise UserError(
                f"encoder {str(vocabulary)!r}: the folder has no tokenizer (tokenizer.json); save it there too"
            )
        return True
    if Path(path_or_name).exists() or not HUB_NAME.fullmatch(path_or_name):
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
        raise UserError(f"encoder {path_or_name!r} is a {names[0]}, not a text encoder; give a T5- or BERT-type model")


@torch.inference_mode()
def check_attention(path_or_name: str, model: Any) -> None:
    """Raises UserError for a model without text input, or whose first token does not attend to the last."""
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
            "do not attend to the last; give a T5- or BERT-type model"
        )


def count_readable_tokens(model: Any, tokenizer: Any) -> int:
    """Returns the maximum tokens that the model can read: unlimited for T5, else its number of positions."""
    if model.config.model_type in T5_CLASSES:
        return int(1e9)
    places = getattr(model.config, "max_position_embeddings", None) or int(1e9)
    embeddings = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    if (padding := getattr(embeddings, "padding_idx", None)) is not None:  # RoBERTa's positions start there
        places -= padding + 1
    return int(min(places, tokenizer.model_max_length))


def _resolve_dtype(dtype: str, device: str) -> str:
    """Returns a key of `DTYPES`; raises UserError for another name."""
    if dtype == "auto":
        return "bfloat16" if device.startswith("cuda") else "float32"
    if dtype not in DTYPES:
        raise UserError(f"encoder dtype {dtype!r} is not one of auto, {', '.join(DTYPES)}")
    return dtype


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
