"""Learned tokens: words of the tokenizer and rows of the table, their file, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dataprep.io.errors import UserError
from dataprep.text.encoder import TextEncoder
from dataprep.text.learned_tokens import (
    add_learned_tokens,
    add_words,
    load_tokens,
    mean_vector,
    place_vectors,
    save_encoder_folder,
    save_tokens,
)
from tests.helpers.encoders import WORDS, save_encoder, word_tokenizer
from tests.helpers.packs import make_caption
from train.tasks.t5 import train_tokenizer
from train.tasks.t5_config import T5TaskConfig

VECTOR = torch.linspace(-1, 1, 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"), "t5")


def test_a_word_is_one_token_with_its_vector_and_all_else_stays(folder: str, tmp_path: Path) -> None:
    plain, encoder = TextEncoder.from_folder(folder), TextEncoder.from_folder(folder)
    add_learned_tokens(encoder, {"zwx": VECTOR, "qpt": 2 * VECTOR})
    ids, _ = encoder.tokenize(["a zwx square", "a red square", "a zwxy square"])
    unknown = WORDS.index("<unk>")
    assert ids == [[3, len(WORDS), 7, 1], [3, 4, 7, 1], [3, unknown, 7, 1]]
    table = encoder.model.get_input_embeddings().weight
    assert table.shape[0] == len(WORDS) + 2
    assert torch.equal(table[len(WORDS)], VECTOR) and torch.equal(table[len(WORDS) + 1], 2 * VECTOR)
    (known,), (before,) = encoder.encode(["a red square"]), plain.encode(["a red square"])
    np.testing.assert_array_equal(known, before)
    save_encoder_folder(encoder, tmp_path)
    texts = ["a zwx square", "qpt of a circle"]
    for ours, again in zip(encoder.encode(texts), TextEncoder.from_folder(str(tmp_path)).encode(texts), strict=True):
        np.testing.assert_array_equal(ours, again)
    assert np.abs(encoder.encode(texts)[0] - plain.encode(texts)[0]).max() > 0.01


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_other_families_take_words_too(tmp_path: Path, kind: str) -> None:
    encoder = TextEncoder.from_folder(save_encoder(tmp_path, kind))
    before = encoder.encode(["a zwx square"])[0]
    add_learned_tokens(encoder, {"zwx": torch.ones(encoder.dim)})
    assert np.abs(encoder.encode(["a zwx square"])[0] - before).max() > 0.01


def test_the_blank_before_a_word_is_no_token_of_its_own(folder: str) -> None:
    encoder = TextEncoder.from_folder(folder)
    encoder.tokenizer = train_tokenizer([make_caption(index) for index in range(64)], T5TaskConfig(vocabulary=400))
    (token,) = add_words(encoder, ["zwx"])
    with_word, without = (encoder.tokenize([text])[0][0] for text in ("a zwx square", "a square"))
    assert with_word == [without[0], token, *without[1:]]


def test_rows_that_the_table_has_already_are_used(folder: str) -> None:
    """T5's table is longer than its vocabulary."""
    encoder = TextEncoder.from_folder(folder)
    encoder.tokenizer = word_tokenizer(WORDS[:-2])
    add_learned_tokens(encoder, {"zwx": VECTOR})
    table = encoder.model.get_input_embeddings().weight
    assert table.shape[0] == len(WORDS) and torch.equal(table[len(WORDS) - 2], VECTOR)


def test_a_mean_is_that_of_the_words_inside_a_sentence(folder: str) -> None:
    encoder = TextEncoder.from_folder(folder)
    table = encoder.model.get_input_embeddings().weight
    torch.testing.assert_close(mean_vector(encoder, "red circle"), (table[4] + table[6]) / 2)
    encoder.tokenizer = train_tokenizer(["a square"] * 9, T5TaskConfig(vocabulary=300))
    _, *inside = encoder.tokenizer("a square", add_special_tokens=False)["input_ids"]
    assert inside != encoder.tokenizer("square", add_special_tokens=False)["input_ids"]
    encoder.model.resize_token_embeddings(len(encoder.tokenizer))
    table = encoder.model.get_input_embeddings().weight
    torch.testing.assert_close(mean_vector(encoder, "square"), table[torch.tensor(inside)].mean(0))
    with pytest.raises(UserError, match="no token of the encoder; name a word that it knows"):
        mean_vector(encoder, "")


def test_words_and_vectors_that_do_not_fit_are_refused(folder: str) -> None:
    encoder = TextEncoder.from_folder(folder, lowercase=True)
    with pytest.raises(UserError, match="token 'red': the encoder's tokenizer has this word already; take another"):
        add_words(encoder, ["red"])
    with pytest.raises(UserError, match="token 'Zwx': this encoder reads all text in lower case; write it so"):
        add_words(encoder, ["Zwx"])
    with pytest.raises(UserError, match="learned tokens are 8 wide, the text encoder's 32; take those that were"):
        place_vectors(encoder, {3: torch.zeros(8)})


def test_a_file_holds_a_vector_per_word(tmp_path: Path) -> None:
    path = tmp_path / "learned.safetensors"
    save_tokens(path, {"zwx": VECTOR.double(), "<cat-toy>": VECTOR[None]})
    assert load_file(path)["zwx"].dtype == torch.float32
    found = load_tokens(str(path))
    assert found is not None and found.keys() == {"zwx", "<cat-toy>"}
    assert all(torch.equal(vector, VECTOR) for vector in found.values())


def test_files_of_another_kind_are_none(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({"unet.a.lora_A.weight": torch.ones(1, 3), "unet.a.lora_B.weight": torch.ones(3, 1)}, path)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no tensors")
    for name in (path, broken, tmp_path / "none.safetensors", tmp_path):
        assert load_tokens(str(name)) is None
