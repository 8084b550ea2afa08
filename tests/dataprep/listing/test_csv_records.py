"""Records of CSV and TSV: no line is lost to a quotation mark."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dataprep.io.errors import UserError
from dataprep.listing import csv_records, csv_tables
from dataprep.listing.account import Account
from dataprep.listing.csv_records import MAX_CELL_LINES, Lines, RecordReader, Records
from dataprep.listing.read_options import ReadOptions
from dataprep.listing.sources import list_rows
from dataprep.listing.text_decoding import Line, LineBlock
from tests.helpers.lists import list_pairs, table_config


def read(text: str, delimiter: str = ",", width: int = 2, quotes: str = "auto") -> tuple[list[list[str]], Account]:
    account = Account()
    lines = iter([Line(number, line) for number, line in enumerate(text.split("\n"), 1)])
    records = [cells for _, cells in RecordReader("l", delimiter, width, quotes, account).read(lines)]
    assert account.records == len(records)
    return records, account


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
@pytest.mark.parametrize(
    "caption", ['"lone', '"', '"a "b" c', '"5 inches', '"a""', 'x" y', '""lone', '"one" two', '"a"b', '""" three']
)
@pytest.mark.parametrize("place", [0, 4, 9])
def test_a_mark_that_never_closes_costs_no_row(caption: str, delimiter: str, place: int) -> None:
    rows = [[f"http://a.test/{index}.jpg", f"caption {index}"] for index in range(10)]
    rows[place][1] = caption
    records, account = read("\n".join(delimiter.join(row) for row in rows), delimiter)
    assert records == rows
    assert account.counts["stray_quotes"] == caption.startswith('"')


def test_ten_thousand_rows_stay_ten_thousand(tmp_path: Path) -> None:
    lines = [
        f"http://a.test/{index}.jpg,{chr(34) if index % 1999 == 5 else ''}caption {index}" for index in range(10_000)
    ]
    (tmp_path / "l.csv").write_text("url,caption\n" + "\n".join(lines) + "\n")
    account = Account()
    tables = list(list_rows(table_config(tmp_path / "l.csv"), 0, account=account))
    urls = [url for table in tables for url in table["url"].to_pylist()]
    assert urls == [f"http://a.test/{index}.jpg" for index in range(10_000)]
    assert account.records == 10_000 and account.counts["stray_quotes"] == 5
    assert account.named["stray_quotes"][0] == f"{tmp_path / 'l.csv'} line 7"


def test_a_cell_over_several_lines_is_one_cell_and_counted() -> None:
    records, account = read('http://a/1,"two\nlines, ""quoted"", "\nhttp://a/2,"a\n\nb"\nhttp://a/3,c')
    assert records == [["http://a/1", 'two\nlines, "quoted", '], ["http://a/2", "a\n\nb"], ["http://a/3", "c"]]
    assert account.counts == {"lines_in_cells": 3}
    assert read('"a\nb","c\nd"')[0] == [["a\nb", "c\nd"]]
    assert read('"a\n""b"",",c')[0] == [['a\n"b",', "c"]]


def test_a_cell_that_may_have_swallowed_rows_is_refused_by_line() -> None:
    text = 'http://a/1,"lone\nhttp://a/2,two\nhttp://a/3,a monitor of 27"\nhttp://a/4,four'
    with pytest.raises(UserError, match=r"line 1 opens .* closes on line 3, and line 2 .*listing\.quotes"):
        read(text)
    assert [len(read(text, quotes=quotes)[0]) for quotes in ("standard", "text")] == [2, 4]
    with pytest.raises(UserError, match="line 1 opens"):
        read('a.jpg,"lone\nb.PNG,27"')
    assert read('a.jpg,"two lines\nwith a dog, example.com"')[0] == [["a.jpg", "two lines\nwith a dog, example.com"]]


def test_a_record_of_another_width_is_refused_by_line() -> None:
    for text, message in [
        ("a,b\nc,d,e", "line 2 has 3 cells, the header has 2"),
        ("a\nc,d", "line 1 has 1 cells, the header has 2"),
        ('a,"lone, with a comma\nc,d', "line 1 has 3 cells and a quotation mark that is never closed"),
    ]:
        with pytest.raises(UserError, match=message):
            read(text)


def test_a_cell_is_not_sought_forever() -> None:
    rows = MAX_CELL_LINES * 3
    records, account = read('x,"lone\n' + "\n".join("y,z" for _ in range(rows)))
    assert len(records) == rows + 1 and account.counts["stray_quotes"] == 1


CELLS = st.text(st.sampled_from('ab ,;\t"\né图'), max_size=8)


@given(st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=8), st.sampled_from(",;\t"))
def test_what_a_csv_writer_writes_is_read_back(rows: list[list[str]], delimiter: str) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    assert read(buffer.getvalue().removesuffix("\n"), delimiter, 3, "standard")[0] == rows
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows(rows)
    assert read(buffer.getvalue().removesuffix("\n"), delimiter, 3, "standard")[0] == rows


HEADERS = [
    ('url, caption\nhttp://a/1, a cat\nhttp://a/2, "b, c"\n', [("http://a/1", "a cat"), ("http://a/2", "b, c")]),
    ('url,caption\nhttp://a/1, "a, b"\n', [("http://a/1", "a, b")]),
    (" url , caption \nhttp://a/1 , a \n", [("http://a/1", "a")]),
    ("url;caption\nhttp://a/1;a cat, red\n", [("http://a/1", "a cat, red")]),
    ("sep=;\nurl;caption\nhttp://a/1;a cat\n", [("http://a/1", "a cat")]),
    ("url|text\nhttp://a/1|a cat\n", [("http://a/1", "a cat")]),
    ("url\tcaption\nhttp://a/1\ta, b\n", [("http://a/1", "a, b")]),
    ("\n\nurl,caption\n\nhttp://a/1,a\n\n", [("http://a/1", "a")]),
    (",,url,caption\n0,7,http://a/1,a\n", [("http://a/1", "a")]),
    ('"url","caption"\n"http://a/1","a"\n', [("http://a/1", "a")]),
    ("http://a/1.jpg,a cat\nhttp://a/2.jpg,b\n", [("http://a/1.jpg", "a cat"), ("http://a/2.jpg", "b")]),
    ("http://a/1;a red cat\n", [("http://a/1", "a red cat")]),
    ("http://a/?x=1;2\nhttp://a/b,c\n", [("http://a/?x=1;2", ""), ("http://a/b,c", "")]),
    ("url,caption\nhttp://a/1,NaN\nhttp://a/2,nan\nhttp://a/3,\n", [(f"http://a/{n}", "") for n in (1, 2, 3)]),
    ("url,caption\r\nhttp://a/1,a\r\n", [("http://a/1", "a")]),
    ("url,caption\rhttp://a/1,a\rhttp://a/2,b", [("http://a/1", "a"), ("http://a/2", "b")]),
]


@pytest.mark.parametrize(("text", "pairs"), HEADERS)
def test_headers_as_people_write_them(text: str, pairs: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes(text.encode())
    assert list_pairs(table_config(tmp_path / "l.csv")) == pairs
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "l.csv").write_bytes(text.encode(encoding))
        assert list_pairs(table_config(tmp_path / "l.csv")) == pairs


def test_a_header_with_blanks_can_be_named_with_or_without_them(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("where ; what\nhttp://a/1; a\n")
    for where, what in (("where", "what"), ("where ", " what")):
        config = table_config(tmp_path / "l.csv", url_column=where, caption_column=what)
        assert list_pairs(config) == [("http://a/1", "a")]
    with pytest.raises(UserError, match=r"has where, what; set listing\.url_column .*or put a line of column names"):
        list_pairs(table_config(tmp_path / "l.csv"))
    (tmp_path / "l.csv").write_text("Image URL,Alt-Text\nhttp://a/1,a\n")
    assert list_pairs(table_config(tmp_path / "l.csv")) == [("http://a/1", "a")]


def split_rows(part: Records, width: int) -> list[list[str]]:
    assert len(part.cells) == len(part.texts) * width
    return [part.cells[start : start + width] for start in range(0, len(part.cells), width)]


def read_all(text: str, width: int, delimiter: str, quotes: str, skips: bool, together: bool) -> tuple[object, ...]:
    """Returns the records, or those before an error and the error; and the account of them."""
    account, records = Account(), list[list[str]]()
    reader = RecordReader("l", delimiter, width, quotes, account, skips)
    blocks = iter([LineBlock(1, text.split("\n")[:5]), LineBlock(6, text.split("\n")[5:])])
    lines = Lines(block for block in blocks if block.lines)
    error = ""
    try:
        if together:
            for part in reader.read_many(lines):
                records += split_rows(part, width)
        else:
            records += [cells for _, cells in reader.read(lines)]
    except UserError as problem:
        error = str(problem)
    # Of an error in a piece, the records before it are what the careful reader had yielded.
    return records if not error else None, error, account.counts, account.named


@given(
    st.lists(st.text(st.sampled_from('ab ,;\t"é图\r'), max_size=6), min_size=1, max_size=14),
    st.integers(1, 3),
    st.sampled_from([",", ";", "\t", " "]),
    st.sampled_from(["auto", "standard", "text"]),
    st.booleans(),
)
@example(["a b", " ", "c d"], 2, " ", "auto", False)  # a blank line that has as many delimiters
def test_lines_that_are_split_together_give_the_same_records(
    lines: list[str], width: int, delimiter: str, quotes: str, skips: bool
) -> None:
    text = "\n".join(lines)
    with mock.patch.object(csv_records, "PIECE", 3):
        assert read_all(text, width, delimiter, quotes, skips, True) == read_all(
            text, width, delimiter, quotes, skips, False
        )


@given(st.lists(st.lists(st.sampled_from(["a", "", "b c", '"d"', 'e"']), min_size=2, max_size=2), max_size=40))
def test_plain_lists_with_few_marks_give_the_same_records(rows: list[list[str]]) -> None:
    text = "\n".join(",".join(row) for row in rows)
    with mock.patch.object(csv_records, "PIECE", 4):
        assert read_all(text, 2, ",", "auto", False, True) == read_all(text, 2, ",", "auto", False, False)


def test_plain_lines_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the line with the mark is, and those of a piece with a line of another kind, here a blank one."""
    monkeypatch.setattr(csv_records, "PIECE", 10)
    lines = [f"http://a/{index},caption {index}" for index in range(100)]
    lines[34] = 'http://a/34,"a, b"'
    lines.insert(57, "")
    account, one_by_one = Account(), list[int]()
    reader = RecordReader("l", ",", 2, "auto", account)
    split = reader._split

    def record(line: Line, *rest: Any) -> tuple[list[str], bool]:
        one_by_one.append(line.number)
        return split(line, *rest)

    monkeypatch.setattr(reader, "_split", record)
    records = [row for part in reader.read_many(Lines([LineBlock(1, lines)])) for row in split_rows(part, 2)]
    assert records == [["http://a/34", "a, b"] if n == 34 else [f"http://a/{n}", f"caption {n}"] for n in range(100)]
    assert one_by_one == [35, *range(51, 58), *range(59, 61), 61] and account.records == 100
    assert account.counts == {"blank_lines": 1}


def test_batches_end_where_they_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After so many rows, or with the row that exceeds so many characters, whatever is read together."""
    monkeypatch.setattr(csv_tables, "BATCH_ROWS", 7)
    monkeypatch.setattr(csv_tables, "BATCH_CHARACTERS", 60)
    monkeypatch.setattr(csv_records, "PIECE", 5)
    lines = [f"u{index},{'x' * (45 if index % 11 == 4 else 1)}" for index in range(40)]
    (tmp_path / "l.csv").write_text("\n".join(["url,caption", *lines]))
    expected, size, rows = list[int](), 0, 0
    for line in lines:
        size, rows = size + len(line), rows + 1
        if rows == 7 or size > 60:
            expected.append(rows)
            size = rows = 0
    batches = list(csv_tables.read_csv(str(tmp_path / "l.csv"), ".csv", ReadOptions()))
    assert [batch.table.num_rows for batch in batches] == [*expected, rows]
    assert [url for batch in batches for url in batch.table["url"].to_pylist()] == [f"u{n}" for n in range(40)]
