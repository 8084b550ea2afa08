from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_fakes import encoded, picture
from pydantic import ValidationError

from dataprep.schema import UserError, read_table
from dataprep.sources import ROOT_KEY, ListingConfig, check_source, list_rows, source_files, write_listing

ROWS = [(f"http://a.test/{index}.jpg", f"caption {index}") for index in range(5)]


def table(path, **fields):
    return ListingConfig(source="table", path=str(path), **fields)


def listed(config):
    tables = list(list_rows(config, 0))
    return [(row["url"], row["caption"]) for part in tables for row in part.to_pylist()]


def write_csv(path, header=("url", "caption"), rows=ROWS, delimiter=","):
    lines = [delimiter.join(header)] if header else []
    path.write_text("\n".join([*lines, *(delimiter.join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("header", [("URL", "TEXT"), ("url", "text"), ("url", "caption"), ("image_url", "Title")])
def test_csv_columns_known_by_name(tmp_path, header):
    assert listed(table(write_csv(tmp_path / "list.csv", header))) == ROWS


def test_columns_named_in_the_config(tmp_path):
    path = write_csv(tmp_path / "list.csv", ("where", "what"))
    assert listed(table(path, url_column="where", caption_column="what")) == ROWS


def test_headerless_tsv_with_the_caption_first(tmp_path):
    rows = [('a "quoted word', "http://a.test/1.jpg"), ('"b', "https://a.test/2.jpg")]
    path = write_csv(tmp_path / "Train_GCC.tsv", None, rows, "\t")
    assert listed(table(path)) == [(url, caption) for caption, url in rows]


def test_csv_with_quotes_newlines_empty_cells_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "list.csv"
    text = '\ufeffurl,caption,n\nhttp://a.test/1,"two\nlines, ""quoted""",1\nhttp://a.test/2,,x\n'
    path.write_text(text, encoding="utf-8")
    rows = next(list_rows(table(path), 0))
    assert rows["caption"].to_pylist() == ['two\nlines, "quoted"', ""]
    assert rows["n"].to_pylist() == ["1", "x"]


def test_jsonl_plain_and_compressed(tmp_path):
    lines = "".join(json.dumps({"url": url, "text": text, "n": [1]}) + "\n" for url, text in ROWS)
    (tmp_path / "list.jsonl").write_text(lines)
    (tmp_path / "list.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert listed(table(tmp_path / "list.jsonl")) == ROWS
    assert listed(table(tmp_path / "list.jsonl.gz")) == ROWS
    assert listed(table(tmp_path)) == ROWS + ROWS  # the folder holds both


def test_parquet_keeps_types_and_renames_reserved_columns(tmp_path):
    columns = {"url": ["http://a.test/1"], "text": ["one"], "width": [512], "similarity": [0.31], "key": ["k"]}
    source = pa.table(columns).replace_schema_metadata({ROOT_KEY: b"/etc"})
    pq.write_table(source, tmp_path / "part.parquet")
    rows = next(list_rows(table(tmp_path / "*.parquet"), 0))
    assert rows.column_names == ["url", "caption", "source_width", "similarity", "source_key"]
    assert rows["source_width"].to_pylist() == [512] and rows["similarity"].type == pa.float64()
    assert ROOT_KEY not in (rows.schema.metadata or {})  # a table cannot name a local folder


def test_no_column_takes_another_ones_place(tmp_path):
    columns = {"url": ["http://a.test/1"], "text": ["one"], "status": ["mine"], "source_status": ["older"]}
    pq.write_table(pa.table(columns | {"file_sha256": ["theirs"]}), tmp_path / "part.parquet")
    row = next(list_rows(table(tmp_path), 0)).to_pylist()[0]
    assert (row["source_status"], row["source_source_status"]) == ("older", "mine")
    assert row["source_file_sha256"] == "theirs"


def test_half_a_character_of_json_becomes_a_question_mark(tmp_path):
    path = broken(tmp_path / "list.jsonl", rb'{"url": "http://a", "text": "a cat \ud83d", "\udc00": ["\ud83d"]}')
    assert next(list_rows(table(path), 0)).to_pylist() == [
        {"url": "http://a", "caption": "a cat ?", "?": '["?"]'},
    ]


def test_a_path_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "pics" / "a.txt").write_text("a house")
    rows = next(list_rows(ListingConfig(source="folder", path="~/pics"), 0))
    assert rows["caption"].to_pylist() == ["a house"]
    assert rows.schema.metadata[ROOT_KEY] == str(tmp_path / "pics").encode()


def test_shards_and_limit(tmp_path):
    config = table(write_csv(tmp_path / "list.csv"), rows_per_shard=2, limit=3)
    (tmp_path / "out").mkdir()
    assert write_listing(config, 0, tmp_path / "out") == {"rows": 3, "shards": 2}
    shards = [read_table(tmp_path / "out" / f"{index:05d}.parquet", "listing") for index in range(2)]
    assert [shard.num_rows for shard in shards] == [2, 1]
    assert pa.concat_tables(shards)["url"].to_pylist() == [url for url, _ in ROWS[:3]]


def test_appending_rows_changes_the_last_shard_alone(tmp_path):
    path = write_csv(tmp_path / "list.csv")
    for name, rows in (("before", ROWS), ("after", [*ROWS, ("http://a.test/new", "new")])):
        write_csv(path, rows=rows)
        (tmp_path / name).mkdir()
        write_listing(table(path, rows_per_shard=2), 0, tmp_path / name)
    for shard, same in (("00000", True), ("00001", True), ("00002", False)):
        files = [(tmp_path / name / f"{shard}.parquet").read_bytes() for name in ("before", "after")]
        assert (files[0] == files[1]) is same


def test_files_with_other_columns_are_joined_with_nulls(tmp_path):
    write_csv(tmp_path / "1.csv", ("url", "caption"), ROWS[:1])
    write_csv(tmp_path / "2.csv", ("url", "text", "more"), [("http://a.test/x", "x", "m")])
    (tmp_path / "out").mkdir()
    write_listing(table(tmp_path), 0, tmp_path / "out")
    assert read_table(tmp_path / "out" / "00000.parquet", "listing")["more"].to_pylist() == [None, "m"]


def test_scenes_need_no_files(tmp_path):
    config = ListingConfig.model_validate({"scenes": {"count": 7}, "rows_per_shard": 5})
    assert source_files(config) == []
    assert write_listing(config, 1, tmp_path) == {"rows": 7, "shards": 2}
    assert "truth" in read_table(tmp_path / "00000.parquet", "listing").column_names


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "cats").mkdir(parents=True)
    for name in ("cats/b.PNG", "a.png", "c.png"):
        (tmp_path / "images" / name).write_bytes(encoded(picture()))
    return tmp_path / "images"


def test_folder_with_captions_beside(folder):
    (folder / "cats" / "b.txt").write_text(" a cat \n")
    (folder / "a.caption").write_text("ein Bild")
    config = ListingConfig(source="folder", path=str(folder))
    assert listed(config) == [("a.png", "ein Bild"), ("c.png", ""), ("cats/b.PNG", "a cat")]
    assert len(source_files(config)) == 5
    assert next(list_rows(config, 0)).schema.metadata[ROOT_KEY] == str(folder).encode()


@pytest.mark.parametrize("name", ["captions.csv", "metadata.jsonl"])
def test_folder_with_a_captions_table(folder, name):
    rows = [("a.png", "one"), ("cats/b.PNG", "two")]
    if name.endswith("csv"):
        write_csv(folder / name, ("file_name", "text"), rows)
    else:
        (folder / name).write_text("".join(json.dumps({"file_name": file, "text": text}) + "\n" for file, text in rows))
    config = ListingConfig(source="folder", path=str(folder))
    assert listed(config) == [("a.png", "one"), ("c.png", ""), ("cats/b.PNG", "two")]


def test_folder_errors(folder, tmp_path):
    with pytest.raises(UserError, match=r"no image has a caption; put name\.txt"):
        listed(ListingConfig(source="folder", path=str(folder)))
    with pytest.raises(UserError, match="no such folder"):
        source_files(ListingConfig(source="folder", path=str(tmp_path / "none")))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image"):
        source_files(ListingConfig(source="folder", path=str(tmp_path / "empty")))


def broken(path, data):
    path.write_bytes(data)
    return path


def bad_parquet(path, names):
    """A column of text that is not UTF-8, under one of the names."""
    latin = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
    pq.write_table(pa.table([pa.array(["http://a"]), latin], names=names), path)
    return path


def test_table_errors(tmp_path):
    good = write_csv(tmp_path / "list.csv")
    (tmp_path / "empty").mkdir()
    cases = [
        (table(tmp_path / "none.csv"), "no such file"),
        (table(tmp_path / "*.tsv"), "no file matches"),
        (table(tmp_path / "empty"), "holds no"),
        (
            table(good, caption_column="captoin"),
            "caption_column 'captoin'.*url, caption; did you mean 'caption'",
        ),
        (table(good, url_column="zzzz"), "set listing.url_column to one of them"),
        (table(write_csv(tmp_path / "odd.csv", ("x", "y"))), "listing.url_column: none recognised"),
        (table(write_csv(tmp_path / "three.csv", None, [("http://a", "b", "c")])), "no header line"),
        (table(write_csv(tmp_path / "twice.csv", ("url", "url"))), "stands twice"),
        (table(broken(tmp_path / "list.parquet", b"not parquet")), "not readable as .parquet"),
        (table(broken(tmp_path / "list.csv.gz", b"not gzip")), "not readable as .csv"),
        (table(broken(tmp_path / "latin.csv", "url,caption\nhttp://a,caf\xe9\n".encode("latin-1"))), "not readable"),
        (table(broken(tmp_path / "ragged.csv", b"url,caption\nhttp://a,b,c\n")), "not readable"),
        (table(broken(tmp_path / "bad.jsonl", b'{"url": "u", "text": "t"}\n{"url"\n')), "line 2 is not JSON"),
        (table(broken(tmp_path / "list.jsonl", b"[1]\n")), "line 1 is not a JSON object"),
        (table(broken(tmp_path / "long.jsonl", b'{"url": ' + b"9" * 5000 + b"}\n")), "line 1 is not JSON"),
        (table(broken(tmp_path / "deep.jsonl", b'{"url": ' + b"[" * 10**5 + b"\n")), "line 1 is not JSON"),
        (table(bad_parquet(tmp_path / "latin.parquet", ["url", "text"])), "not readable as .parquet .*UTF8"),
        (table(bad_parquet(tmp_path / "double.parquet", ["url", "url"])), "'url' stands twice"),
        (table(broken(tmp_path / "notes.doc", b"x")), "unknown kind of file"),
        (table(broken(tmp_path / "nothing.csv", b"")), "no rows"),
        (table(broken(tmp_path / "header.csv", b"url,caption\n")), "no rows"),
    ]
    for config, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            check_source(config)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no rows"):
        write_listing(cases[-1][0], 0, tmp_path)


def test_config_errors():
    with pytest.raises(ValidationError, match="set path to the folder"):
        ListingConfig(source="folder")
    with pytest.raises(ValidationError, match="set source to table or folder"):
        ListingConfig(path="list.csv")
    with pytest.raises(ValidationError):
        ListingConfig(rows_per_shard=10_001)
