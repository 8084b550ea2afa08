"""The token that ends every text of a tokenizer, whose output stands for the text in the small CLIP.

T5's is ``</s>``, BERT's ``[SEP]``. Found by what the tokenizer does: its attributes do not tell whether it is appended.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dataprep.io.errors import UserError
from dataprep.io.pipeline_folder import encoder_folders


def find_end_token(encode: Callable[[str], Sequence[int]]) -> int | None:
    """Returns the id with which ``encode`` ends every text; None if there is none."""
    empty, text = encode(""), encode("a")
    return int(empty[-1]) if empty and empty[-1] == text[-1] else None


def load_tokenizer(path_or_name: str) -> Any:
    """Returns the tokenizer of a folder (diffusers' layout too) or hub name, padding with its end token if need be.

    Raises UserError where there is none, or one that does not end a text with a token.
    """
    from dataprep.io.model_imports import import_transformers

    try:
        tokenizer = import_transformers(models=False).AutoTokenizer.from_pretrained(encoder_folders(path_or_name)[1])
    except (OSError, ValueError) as error:
        raise UserError(f"clip.train: no tokenizer in {path_or_name!r}; give the text encoder's folder") from error
    end = find_end_token(lambda text: tokenizer(text)["input_ids"])
    if end is None:
        raise UserError(
            f"clip.train: the tokenizer of {path_or_name!r} does not end a text with a token, as T5's (</s>) and "
            "BERT's ([SEP]) do; take another encoder, or name a CLIP as clip.model"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
    return tokenizer


def check_tokenizer(folder: str) -> None:
    """Raises UserError as `load_tokenizer` for a local folder; mostly without loading transformers."""
    file = Path(encoder_folders(folder)[1]) / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises Exception itself
            raise UserError(
                f"encoder {folder!r}: its tokenizer.json cannot be read ({error}); save it again"
            ) from error
        if find_end_token(lambda text: tokenizer.encode(text).ids) is not None:
            return
    load_tokenizer(folder)  # transformers may add what the file does not have


def describe_tokenizer(tokenizer: Any) -> tuple[int, int, int]:
    """Returns the size of the vocabulary, the id of the end token and that of the padding of `load_tokenizer`."""
    end = find_end_token(lambda text: tokenizer(text)["input_ids"])
    assert end is not None, "load it with load_tokenizer"
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values())), end, int(tokenizer.pad_token_id)
