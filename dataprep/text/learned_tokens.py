"""Learned tokens of a text encoder: words of which each has a vector in its table (textual inversion).

Gal et al. 2022 (arXiv 2208.01618). A file of them is a safetensors file with a vector per word, under the word's name,
as diffusers' `load_textual_inversion` reads it where it is one word. Shape legend: N words, D channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers

if TYPE_CHECKING:
    from dataprep.text.encoder import TextEncoder


def save_tokens(path: str | Path, vectors: Mapping[str, Tensor]) -> None:
    """Writes a vector (D,) per word, float32."""
    stored = {word: vector.detach().float().cpu().contiguous() for word, vector in vectors.items()}
    save_file(stored, path, metadata={"format": "pt"})


def load_tokens(path: str) -> dict[str, Tensor] | None:
    """Reads a file of learned tokens, float32 (D,) per word; None for a path or a file of another kind."""
    if not path.endswith(".safetensors") or not storage.exists(path):
        return None
    try:
        with storage.local_copy(path) as local:
            found = load_file(local)
    except (SafetensorError, OSError):
        return None
    vectors = {word: value.float().flatten() for word, value in found.items() if _is_vector(word, value)}
    return vectors if vectors and len(vectors) == len(found) else None


def _is_vector(name: str, value: Tensor) -> bool:
    """Returns whether a tensor is a token's: (D,), or (1, D) as some libraries store it, and no layer's."""
    return "." not in name and (value.ndim == 1 or (value.ndim == 2 and value.shape[0] == 1))


def add_words(encoder: TextEncoder, words: Sequence[str]) -> list[int]:
    """Makes each word one token of the encoder's tokenizer; returns their ids, which its table may not have yet.

    Raises UserError for a word that is a token already, or that the encoder would read in lower case.
    """
    tokenizer = encoder.tokenizer
    known = tokenizer.get_vocab()
    for word in words:
        if encoder.lowercase and word != word.lower():
            raise UserError(f"token {word!r}: this encoder reads all text in lower case; write it so")
        if word in known:
            raise UserError(f"token {word!r}: the encoder's tokenizer has this word already; take another one")
    added = import_transformers(models=False).AddedToken
    # With the blank before it, which else would be a token of its own, and never inside a longer word; found in the
    # normalised text, since normalising what is left and right of it apart may cut the blanks there.
    tokenizer.add_tokens([added(word, lstrip=True, single_word=True, normalized=True) for word in words])
    return [int(tokenizer.convert_tokens_to_ids(word)) for word in words]


def place_vectors(encoder: TextEncoder, vectors: Mapping[int, Tensor]) -> None:
    """Writes vectors (D,) by token id into the encoder's table, which grows as far as they need.

    Raises UserError for vectors of another width.
    """
    table = encoder.model.get_input_embeddings()
    for vector in vectors.values():
        if vector.numel() != table.embedding_dim:
            raise UserError(
                f"learned tokens are {vector.numel()} wide, the text encoder's {table.embedding_dim}; take those that "
                "were learned with this encoder"
            )
    if max(vectors) >= table.num_embeddings:
        table = encoder.model.resize_token_embeddings(max(vectors) + 1, mean_resizing=False)
    with torch.no_grad():
        for token, vector in vectors.items():
            table.weight[token] = vector.to(table.weight)


def add_learned_tokens(encoder: TextEncoder, vectors: Mapping[str, Tensor]) -> None:
    """Adds words with their vectors to an encoder. Raises as `add_words` and `place_vectors`."""
    ids = add_words(encoder, list(vectors))
    place_vectors(encoder, dict(zip(ids, vectors.values(), strict=True)))


def mean_vector(encoder: TextEncoder, words: str) -> Tensor:
    """Returns the mean (D,) of the table's vectors of ``words``, as they are inside a sentence, float32."""
    tokenizer = encoder.tokenizer
    text = encoder.clean(words)
    lead, whole = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in ("a", f"a {text}"))
    # Where the lead is another token beside them, the words are taken alone.
    ids = whole[len(lead) :] if whole[: len(lead)] == lead else tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise UserError(f"words {words!r} to begin a token from: no token of the encoder; name a word that it knows")
    mean_D: Tensor = encoder.model.get_input_embeddings().weight[torch.tensor(ids)].float().mean(0)
    return mean_D.detach()


def save_encoder_folder(encoder: TextEncoder, folder: str | Path) -> None:
    """Writes the encoder and its tokenizer as one folder in transformers' layout."""
    encoder.model.save_pretrained(folder)
    encoder.tokenizer.save_pretrained(folder)
