"""Lists as whole JSON documents, and plain lists of URLs."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from dataprep.io.errors import UserError
from dataprep.listing.sources import check_source
from tests.helpers.lists import ROWS, list_pairs, table_config

RECORDS = [{"url": url, "caption": caption} for url, caption in ROWS]
DOCUMENTS = [
    RECORDS,
    {"data": RECORDS},
    {"url": [url for url, _ in ROWS], "caption": [caption for _, caption in ROWS]},
    {"url": {str(i): url for i, (url, _) in enumerate(ROWS)}, "text": {str(i): c for i, (_, c) in enumerate(ROWS)}},
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents(document: object, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(json.dumps(document, indent=1))
    assert list_pairs(table_config(tmp_path / "l.json")) == ROWS
    assert list_pairs(table_config(tmp_path)) == ROWS  # a folder of nothing else


def test_json_lines_under_the_name_of_json(tmp_path: Path) -> None:
    for records in (RECORDS, RECORDS[:1]):
        (tmp_path / "l.json").write_text("\n".join(map(json.dumps, records)))
        assert list_pairs(table_config(tmp_path / "l.json")) == ROWS[: len(records)]


def test_urls_alone(tmp_path: Path) -> None:
    urls = [url for url, _ in ROWS]
    (tmp_path / "l.json").write_text(json.dumps(urls))
    (tmp_path / "l.txt").write_text("\n".join(urls) + "\n\n")
    (tmp_path / "l.csv").write_text("\n".join(urls))
    (tmp_path / "named.csv").write_text("\n".join(["url", *urls]))
    for name in ("l.json", "l.txt", "l.csv", "named.csv"):
        assert list_pairs(table_config(tmp_path / name)) == [(url, "") for url in urls]
    (tmp_path / "l.txt").write_text("http://a/IMG 1.jpg\thas, a caption\r\nhttp://a/IMG 2.jpg\r\n")
    assert list_pairs(table_config(tmp_path / "l.txt")) == [
        ("http://a/IMG 1.jpg", "has, a caption"),
        ("http://a/IMG 2.jpg", ""),
    ]


def test_zstandard(tmp_path: Path) -> None:
    text = "url,caption\n" + "".join(f"{url},{caption}\n" for url, caption in ROWS)
    with pa.CompressedOutputStream(str(tmp_path / "l.csv.zst"), "zstd") as file:
        file.write(text.encode())
    assert list_pairs(table_config(tmp_path / "l.csv.zst")) == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [{"id": 1}], "annotations": []}', "object of images, annotations, which are not columns"),
        ("[1, 2]", "entry 1 is not a JSON object"),
        ("7", "a JSON int, not a list"),
        ("[", "not JSON"),
        ("[]", "no rows"),
        ("", "not JSON"),
    ],
)
def test_documents_that_are_no_list(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "l.json").write_text(text)
    with pytest.raises(UserError, match=message):
        check_source(table_config(tmp_path / "l.json"))
