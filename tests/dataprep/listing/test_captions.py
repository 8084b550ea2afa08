"""One rule for captions in every table format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.errors import UserError
from dataprep.listing.account import Account
from dataprep.listing.captions import MAX_CAPTIONS, Captions, read_captions
from dataprep.listing.sources import check_source, list_rows
from tests.helpers.lists import table_config

CASES: list[tuple[Any, list[str]]] = [
    ("a cat", ["a cat"]),
    ('["a", "b"]', ['["a", "b"]']),  # text that looks like a list is text
    (["one", "two", "one", None, ""], ["one", "two"]),
    ([], []),
    (None, []),
    (float("nan"), []),
    ("NaN", []),
    ("nan", []),
    ("", []),
    (7, ["7"]),
    ([float("nan"), "x"], ["x"]),
]
REFUSED = [{"en": "a cat"}, [["a"], ["b"]], [{"text": "a"}], ["x" + str(index) for index in range(MAX_CAPTIONS + 1)]]


@pytest.mark.parametrize(("value", "texts"), CASES)
def test_values(value: Any, texts: list[str]) -> None:
    assert read_captions(value) == Captions(texts)


@pytest.mark.parametrize("value", REFUSED)
def test_refused_values(value: Any) -> None:
    captions = read_captions(value)
    assert captions.texts == [] and captions.problem


def rows_of(path: Path, account: Account | None = None) -> list[dict[str, Any]]:
    return [row for table in list_rows(table_config(path), 0, account=account) for row in table.to_pylist()]


@pytest.mark.parametrize("extension", ["jsonl", "json"])
def test_json(extension: str, tmp_path: Path) -> None:
    values = [value for value, _ in CASES] + REFUSED
    records = [{"url": f"http://a/{index}", "text": value} for index, value in enumerate(values)]
    path = tmp_path / f"l.{extension}"
    path.write_text(json.dumps(records) if extension == "json" else "\n".join(map(json.dumps, records)))
    account = Account()
    rows = rows_of(path, account)
    for row, (_, texts) in zip(rows, CASES, strict=False):
        assert [row["caption"], row["caption_2"]] == [texts[0] if texts else "", texts[1] if texts[1:] else None]
        assert row["reason"] is None
    assert [row["reason"] for row in rows[len(CASES) :]] == ["text"] * len(REFUSED)
    assert rows[len(CASES)]["error_message"] == "the caption is an object, neither text nor a list of texts"
    assert account.counts == {"several_captions": 1} and account.records == len(rows)


def test_parquet(tmp_path: Path) -> None:
    urls = ["http://a/1", "http://a/2", "http://a/3"]
    for kind, values, captions in [
        (pa.list_(pa.string()), [["one", "two"], [], None], ["one", "", ""]),
        (pa.large_list(pa.string()), [["one"], ["x", None], ["y"]], ["one", "x", "y"]),
        (pa.float64(), [1.5, float("nan"), None], ["1.5", "", ""]),
        (pa.int64(), [1, 2, None], ["1", "2", ""]),
        (pa.binary(), [b"one", "é".encode(), None], ["one", "é", ""]),
        (pa.string(), ["one", "NaN", None], ["one", "", ""]),
        (pa.null(), [None, None, None], ["", "", ""]),
    ]:
        pq.write_table(pa.table({"url": urls, "text": pa.array(values, kind)}), tmp_path / "l.parquet")
        rows = rows_of(tmp_path / "l.parquet")
        assert [row["caption"] for row in rows] == captions, kind
    pq.write_table(pa.table({"url": urls, "text": [{"en": "x"}] * 3}), tmp_path / "l.parquet")
    with pytest.raises(UserError, match=r"'text' is of type struct.*, not text; name another"):
        check_source(table_config(tmp_path / "l.parquet"))


def test_a_row_without_url_says_so_and_is_not_taken_for_a_forgotten_one(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("url,caption\n,nothing\n   ,blank\nhttp://a/1,one\n")
    rows = rows_of(tmp_path / "l.csv")
    assert [row["reason"] for row in rows] == ["url", "url", None]


def test_a_list_of_which_no_row_can_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.jsonl").write_text('{"url": "http://a/1", "caption": {"en": "a"}}\n')
    with pytest.raises(UserError, match=r"none of the 1 rows read can be used; http://a/1: the caption is an object"):
        check_source(table_config(tmp_path / "l.jsonl"))
