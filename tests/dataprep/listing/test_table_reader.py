"""Tables of URLs in every format."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY
from dataprep.listing.account import Account
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import check_source, list_rows
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded, picture
from tests.helpers.lists import ROWS, list_pairs, table_config, write_csv


@pytest.mark.parametrize("header", [("URL", "TEXT"), ("url", "text"), ("url", "caption"), ("image_url", "Title")])
def test_csv_columns_known_by_name(tmp_path: Path, header: tuple[str, ...] | None) -> None:
    assert list_pairs(table_config(write_csv(tmp_path / "list.csv", header))) == ROWS


def test_columns_named_in_the_config(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "list.csv", ("where", "what"))
    assert list_pairs(table_config(path, url_column="where", caption_column="what")) == ROWS


def test_headerless_tsv_with_the_caption_first(tmp_path: Path) -> None:
    rows = [('a "quoted word', "http://a.test/1.jpg"), ('"b', "https://a.test/2.jpg")]
    path = write_csv(tmp_path / "Train_GCC.tsv", None, rows, "\t")
    assert list_pairs(table_config(path)) == [(url, caption) for caption, url in rows]


def test_csv_with_quotes_newlines_empty_cells_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    text = '\ufeffurl,caption,n\nhttp://a.test/1,"two\nlines, ""quoted""",1\nhttp://a.test/2,,x\n'
    path.write_text(text, encoding="utf-8")
    rows = next(list_rows(table_config(path), 0))
    assert rows["caption"].to_pylist() == ['two\nlines, "quoted"', ""]
    assert rows["n"].to_pylist() == ["1", "x"]


def test_jsonl_plain_and_compressed(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"url": url, "text": text, "n": [1]}) + "\n" for url, text in ROWS)
    (tmp_path / "list.jsonl").write_text(lines)
    (tmp_path / "list.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert list_pairs(table_config(tmp_path / "list.jsonl")) == ROWS
    assert list_pairs(table_config(tmp_path / "list.jsonl.gz")) == ROWS
    assert list_pairs(table_config(tmp_path)) == ROWS + ROWS  # the folder holds both


def test_a_lone_surrogate_in_json_becomes_a_question_mark(tmp_path: Path) -> None:
    path = broken(tmp_path / "list.jsonl", rb'{"url": "http://a", "text": "a cat \ud83d", "\udc00": ["\ud83d"]}')
    assert next(list_rows(table_config(path), 0)).to_pylist() == [
        {"url": "http://a", "caption": "a cat ?", "?": '["?"]'},
    ]


def test_a_path_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "pics" / "a.txt").write_text("a house")
    rows = next(list_rows(ListingConfig(source="folder", path="~/pics"), 0))
    assert rows["caption"].to_pylist() == ["a house"]
    assert rows.schema.metadata[ROOT_KEY] == str(tmp_path / "pics").encode()


def broken(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def bad_parquet(path: Path, names: list[str]) -> Path:
    """Writes a text column that is not UTF-8."""
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table([pa.array(["http://a"]), latin], names=names), path)
    return path


def test_table_errors(tmp_path: Path) -> None:
    good = write_csv(tmp_path / "list.csv")
    (tmp_path / "empty").mkdir()
    cases = [
        (table_config(tmp_path / "none.csv"), "no such file"),
        (table_config(tmp_path / "*.tsv"), "no file matches"),
        (table_config(tmp_path / "empty"), "holds no"),
        (
            table_config(good, caption_column="captoin"),
            "caption_column 'captoin'.*url, caption; did you mean 'caption'",
        ),
        (table_config(good, url_column="zzzz"), "set listing.url_column to one of them"),
        (table_config(write_csv(tmp_path / "odd.csv", ("x", "y"))), "listing.url_column: none recognised"),
        (table_config(write_csv(tmp_path / "three.csv", None, [("http://a", "b", "c")])), "no header line"),
        (table_config(write_csv(tmp_path / "twice.csv", ("url", "url"))), "occurs twice"),
        (table_config(broken(tmp_path / "list.parquet", b"not parquet")), "not readable as .parquet"),
        (table_config(broken(tmp_path / "list.csv.gz", b"not gzip")), "not readable as .csv"),
        (
            table_config(broken(tmp_path / "chinese.csv", "url,caption\nhttp://a,红色的猫\n".encode("gb18030"))),
            "line 2 is not readable as UTF-8 or Windows-1252; set listing.encoding",
        ),
        (table_config(broken(tmp_path / "ragged.csv", b"url,caption\nhttp://a,b,c\n")), "not readable"),
        (table_config(broken(tmp_path / "bad.jsonl", b'{"url": "u", "text": "t"}\n{"url"\n')), "line 2 is not JSON"),
        (table_config(broken(tmp_path / "list.jsonl", b"[1]\n")), "line 1 is not a JSON object"),
        (table_config(broken(tmp_path / "long.jsonl", b'{"url": ' + b"9" * 5000 + b"}\n")), "line 1 is not JSON"),
        (table_config(broken(tmp_path / "deep.jsonl", b'{"url": ' + b"[" * 10**5 + b"\n")), "line 1 is not JSON"),
        (table_config(bad_parquet(tmp_path / "latin.parquet", ["url", "text"])), "not readable as .parquet .*UTF8"),
        (table_config(bad_parquet(tmp_path / "double.parquet", ["url", "url"])), "'url' occurs twice"),
        (table_config(broken(tmp_path / "notes.doc", b"x")), "unknown kind of file"),
        (table_config(broken(tmp_path / "nothing.csv", b"")), "no rows"),
        (table_config(broken(tmp_path / "header.csv", b"url,caption\n")), "no rows"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            check_source(config)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no rows"):
        write_listing(cases[-1][0], 0, tmp_path)


def test_columns_whose_type_differs_between_files_become_text(tmp_path: Path) -> None:
    kinds = [pa.int64(), pa.string(), pa.float64(), pa.list_(pa.int64()), pa.null()]
    values = [[1, None], ["two", None], [2.5, None], [[1, 2], None], [None, None]]
    for number, (kind, cells) in enumerate(zip(kinds, values, strict=True)):
        urls = [f"http://a/{number}/{row}" for row in range(2)]
        table = pa.table({"url": urls, "caption": ["a", "b"], "n": pa.array(cells, kind), "w": [number, 0.5]})
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "set" / f"{number}.parquet")
    (tmp_path / "out").mkdir()
    config = table_config(tmp_path / "set", rows_per_shard=3)
    assert write_listing(config, 0, tmp_path / "out")["rows"] == 10
    shards = [pq.read_table(tmp_path / "out" / f"0000{shard}.parquet") for shard in range(4)]
    assert {str(shard.schema.field("n").type) for shard in shards} == {"string"}
    assert [text for shard in shards for text in shard["n"].to_pylist() if text] == ["1", "two", "2.5", "[1, 2]"]
    (tmp_path / "set" / "5.csv").write_text("url,caption,w\nhttp://a/5,a,wide\n")
    mixed = table_config(tmp_path / "set", rows_per_shard=100)
    write_listing(mixed, 0, tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / "00000.parquet")["w"].to_pylist()[-1] == "wide"


def test_bytes_are_base64_or_left_out_and_said(tmp_path: Path) -> None:
    nested = pa.array([[b"\xff"]], pa.list_(pa.binary()))
    columns = {"url": ["http://a/1"], "caption": ["a"], "hash": pa.array([b"\xff\0"]), "more": nested}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    account = Account()
    (table,) = list_rows(table_config(tmp_path / "l.parquet"), 0, account=account)
    assert table.to_pylist() == [{"url": "http://a/1", "caption": "a", "hash": "/wA="}]
    assert account.named == {"columns": [f"{tmp_path / 'l.parquet'}: more"]}
