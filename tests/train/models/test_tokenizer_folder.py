"""The tokenizer of an encoder's folder, in both layouts, and one that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from tests.helpers.encoders import save_encoder
from train.models.tokenizer_folder import check_tokenizer, load_tokenizer


def test_the_tokenizer_of_a_folder_in_diffusers_layout(tmp_path: Path) -> None:
    save_encoder(tmp_path / "tokenizer", "t5")
    (tmp_path / "model_index.json").write_text("{}")
    check_tokenizer(str(tmp_path))
    assert load_tokenizer(str(tmp_path))("a red")["input_ids"] == [3, 4, 1]


def test_a_folder_without_a_readable_tokenizer(tmp_path: Path) -> None:
    for check in (check_tokenizer, load_tokenizer):
        with pytest.raises(UserError, match=r"no tokenizer in .*; give the text encoder's folder"):
            check(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"its tokenizer.json cannot be read"):
        check_tokenizer(str(tmp_path))
