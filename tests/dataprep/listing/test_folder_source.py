"""Folders of images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import find_source_files, list_rows
from tests.helpers.images import encoded, picture
from tests.helpers.lists import list_pairs, write_csv


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images" / "cats").mkdir(parents=True)
    for name in ("cats/b.PNG", "a.png", "c.png"):
        (tmp_path / "images" / name).write_bytes(encoded(picture()))
    return tmp_path / "images"


def test_folder_with_captions_beside(folder: Path) -> None:
    (folder / "cats" / "b.txt").write_text(" a cat \n")
    (folder / "a.caption").write_text("ein Bild")
    config = ListingConfig(source="folder", path=str(folder))
    assert list_pairs(config) == [("a.png", "ein Bild"), ("c.png", ""), ("cats/b.PNG", "a cat")]
    assert len(find_source_files(config)) == 5
    assert next(list_rows(config, 0)).schema.metadata[ROOT_KEY] == str(folder).encode()


@pytest.mark.parametrize("name", ["captions.csv", "metadata.jsonl"])
def test_folder_with_a_captions_table(folder: Path, name: str) -> None:
    rows = [("a.png", "one"), ("cats/b.PNG", "two")]
    if name.endswith("csv"):
        write_csv(folder / name, ("file_name", "text"), rows)
    else:
        (folder / name).write_text("".join(json.dumps({"file_name": file, "text": text}) + "\n" for file, text in rows))
    config = ListingConfig(source="folder", path=str(folder))
    assert list_pairs(config) == [("a.png", "one"), ("c.png", ""), ("cats/b.PNG", "two")]


def test_folder_errors(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no image has a caption; put name\.txt"):
        list_pairs(ListingConfig(source="folder", path=str(folder)))
    with pytest.raises(UserError, match="no such folder"):
        find_source_files(ListingConfig(source="folder", path=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        find_source_files(ListingConfig(source="folder", path=str(tmp_path / "empty")))
