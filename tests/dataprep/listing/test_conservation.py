"""Every record of a source is in exactly one row of the run, with a reason or an image, or the list is refused by line.

Random lists, folders and tars: quoting, encodings, names, duplicates, hidden files, missing members, broken files.
"""

from __future__ import annotations

import csv
import io
import json
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io.errors import UserError
from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.files import is_hidden
from dataprep.listing.writer import write_listing
from tests.helpers.images import encoded
from tests.helpers.tars import write_tar


@dataclass
class Listed:
    """A written listing: its counters, its rows, and the names that it left out, by kind."""

    counters: dict[str, int]
    rows: list[dict[str, Any]]
    left_out: list[tuple[str, str]]
    folder: Path

    def texts(self) -> Counter[str]:
        """Counts every caption of every row."""
        return Counter(
            text for row in self.rows for name, text in row.items() if name.startswith("caption") and text is not None
        )


@contextmanager
def listing(config: ListingConfig) -> Iterator[Listed]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counters = write_listing(config, 0, folder)
        shards = [read_table(folder / shard_name(shard, "parquet"), "listing") for shard in range(counters["shards"])]
        rows = [row for shard in shards for row in shard.to_pylist()]
        log = folder / "left_out.jsonl"
        left_out = [(str(kind), str(of)) for kind, of in map(json.loads, log.open())] if log.exists() else []
        yield Listed(counters, rows, left_out, folder)


def check_counters(listed: Listed) -> None:
    counters, rows = listed.counters, listed.rows
    reasons = Counter(row.get("reason") for row in rows)
    assert counters["records"] == counters["rows"] == len(rows)
    assert counters["usable"] == reasons.pop(None, 0)
    assert {name: n for name, n in counters.items() if name.startswith("reason_")} == {
        f"reason_{reason}": n for reason, n in reasons.items()
    }
    assert all((row.get("reason") is None) == (row.get("error_message") is None) for row in rows)


def check_download(listed: Listed) -> None:
    """Every row of a folder or tar becomes one row of the download: an image or a reason."""
    found = []
    for shard in range(listed.counters["shards"]):
        path = listed.folder / shard_name(shard, "parquet")
        (listed.folder / "d").mkdir(exist_ok=True)
        download_shard(path, shard, listed.folder / "d", DownloadConfig(image_size=8))
        found += read_table(listed.folder / "d" / path.name, "download").to_pylist()
    assert [row["url"] for row in found] == [row["url"] for row in listed.rows]
    assert [row["caption"] for row in found] == [row["caption"] for row in listed.rows]
    for row, before in zip(found, listed.rows, strict=True):
        assert (row["status"] == "success") == (row["reason"] is None)
        assert before.get("reason") in (None, row["reason"])


# ------------------------------------------------------------------------------------------------- lists

WORDS = st.text(st.sampled_from("ab \"“é,;\t|'\\"), max_size=12)
STYLES = st.sampled_from(["bare", "quoted", "open", "spans"])


@st.composite
def csv_files(draw: st.DrawFn) -> tuple[bytes, str, int]:
    """Draws a CSV or TSV file of any care: its bytes, its extension, and how many records were meant."""
    extension = draw(st.sampled_from([".csv", ".tsv"]))
    delimiter = "\t" if extension == ".tsv" else draw(st.sampled_from(",;|"))
    lines = [delimiter.join(("url", "caption"))]
    count = draw(st.integers(1, 12))
    for index in range(count):
        text = draw(WORDS)
        style = draw(STYLES)
        if style == "bare":
            cell = text.replace(delimiter, " ").lstrip('"')
        elif style == "open":
            cell = '"' + text.replace(delimiter, " ").replace('"', "")
        else:
            buffer = io.StringIO()
            inner = text if style == "quoted" else text + "\n\nmore"
            csv.writer(buffer, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="").writerow([inner])
            cell = buffer.getvalue()
        lines.append(f"http://a.test/{index}.jpg{delimiter}{cell}")
        if draw(st.integers(0, 9)) == 0:
            lines.append("")
    text = draw(st.sampled_from(["\n", "\r\n"])).join(lines) + draw(st.sampled_from(["", "\n"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]))
    return text.encode(encoding), extension, count


OUTCOMES: Counter[str] = Counter()


@settings(max_examples=300)
@given(csv_files())
def test_no_row_of_a_table_is_lost(file: tuple[bytes, str, int]) -> None:
    data, extension, count = file
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"list{extension}"
        path.write_bytes(data)
        try:
            with listing(ListingConfig(source="table", path=str(path), rows_per_shard=5)) as listed:
                check_counters(listed)
                assert [row["url"] for row in listed.rows] == [f"http://a.test/{index}.jpg" for index in range(count)]
                OUTCOMES["read"] += 1
        except UserError as error:
            assert " line " in str(error), error
            OUTCOMES["refused"] += 1


def test_most_of_these_tables_are_read() -> None:
    """Else the test above would prove nothing."""
    if OUTCOMES:
        assert OUTCOMES["read"] > 2 * OUTCOMES["refused"], OUTCOMES


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)


@given(st.lists(VALUES, min_size=1, max_size=8), st.sampled_from([".jsonl", ".json", ".txt", ".parquet"]))
def test_no_record_of_another_format_is_lost(values: list[Any], extension: str) -> None:
    urls = [f"http://a.test/{index}.jpg" for index in range(len(values) + 1)]
    records = [{"url": url, "caption": value} for url, value in zip(urls, [*values, "good"], strict=True)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"list{extension}"
        if extension == ".parquet":
            pq.write_table(pa.table({"url": urls, "caption": [str(item["caption"]) for item in records]}), path)
        elif extension == ".txt":
            path.write_text("\n".join(urls))
        else:
            path.write_text(json.dumps(records) if extension == ".json" else "\n".join(map(json.dumps, records)))
        with listing(ListingConfig(source="table", path=str(path), rows_per_shard=3)) as listed:
            check_counters(listed)
            assert [row["url"] for row in listed.rows] == urls
            for row, item in zip(listed.rows, records, strict=True):
                if isinstance(item["caption"], dict):
                    assert extension in (".txt", ".parquet") or row["reason"] == "text"


# ----------------------------------------------------------------------------------------------- folders


def image(number: int) -> bytes:
    """Returns a picture of its own for each number."""
    return encoded(np.full((8, 8, 3), number, np.uint8), "PNG") + number.to_bytes(4, "big")


STEMS = ["a", "A", "b", "c.d", unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"), "._a", "x y"]
FOLDERS = ["", "", "sub/", "@eaDir/", "Sub2/", ".hidden/"]
IMAGES = [".png", ".PNG", ".jpg", ".jfif", ".heic", "", ".dat"]
OTHERS = [".txt", ".TXT", ".caption", ".json", ".mp4", ".csv"]
NAMES = st.tuples(st.sampled_from(FOLDERS), st.sampled_from(STEMS), st.sampled_from(IMAGES + OTHERS)).map("".join)
ENCODINGS = st.sampled_from(["utf-8", "utf-16", "utf-8-sig", "cp1252"])


@settings(max_examples=150)
@given(
    st.lists(NAMES, min_size=1, max_size=12, unique=True),
    st.lists(st.tuples(NAMES, st.sampled_from(["{}", "./{}", "/{}"])), max_size=4),
    ENCODINGS,
)
def test_no_image_and_no_caption_of_a_folder_is_lost(
    names: list[str], lines: list[tuple[str, str]], encoding: str
) -> None:
    names = ["first.png", *names]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, name in enumerate(names):
            (root / name).parent.mkdir(exist_ok=True)
            is_image = any(name.endswith(extension) for extension in IMAGES[:-2]) or "." not in name.rpartition("/")[2]
            is_image |= name.endswith(".dat") or not name.lower().endswith(tuple(OTHERS))
            text = json.dumps({"caption": f"file {number} é"}) if name.endswith(".json") else f"file {number} é"
            (root / name).write_bytes(image(number) if is_image else text.encode(encoding))
        table = "".join(f'"{form.format(name)}",line {n}\n' for n, (name, form) in enumerate(lines))
        (root / "captions.csv").write_text(f"file_name,text\nfirst.png,the first\n{table}", encoding="utf-8")
        with listing(ListingConfig(source="folder", path=str(root), rows_per_shard=4)) as listed:
            check_counters(listed)
            check_download(listed)
            named = {of.rstrip("/") for _, of in listed.left_out}
            urls, texts = Counter(row["url"] for row in listed.rows), listed.texts()
            for number, name in enumerate(names):
                below = any(name.startswith(f"{of}/") for of in named)
                if is_hidden(name):
                    assert name in named or below
                elif name in urls:
                    assert urls[name] - sum(name in form.format(of) for of, form in lines) <= 1
                else:  # a caption of an image, or named
                    assert texts[f"file {number} é"] >= 1 or name in named, name
            for n in range(len(lines)):
                assert texts[f"line {n}"] == 1


# -------------------------------------------------------------------------------------------------- tars

MEMBERS = [".png", ".jpg", ".seg.png", ".txt", ".TXT", ".json", ".caption", ".cls", ""]
TAR_NAMES = st.tuples(st.sampled_from(["", "./", "x/", "__MACOSX/"]), st.sampled_from(["a", "b", "._a", "é"]))
TAR_MEMBERS = st.tuples(TAR_NAMES.map("".join), st.sampled_from(MEMBERS)).map("".join)


@settings(max_examples=200)
@given(st.lists(TAR_MEMBERS, min_size=1, max_size=16), ENCODINGS, st.booleans())
def test_no_image_and_no_caption_of_a_tar_is_lost(names: list[str], encoding: str, hidden: bool) -> None:
    names = ["first.png", "first.txt", *names]
    content: list[bytes] = []
    for number, name in enumerate(names):
        if name.lower().endswith(".json"):
            content.append(json.dumps({"text": f"member {number} é"}).encode())
        else:
            content.append(image(number) if name.endswith((".png", ".jpg")) else f"member {number} é".encode(encoding))
    with tempfile.TemporaryDirectory() as folder:
        path = write_tar(Path(folder) / "0.tar", list(zip(names, content, strict=True)))
        config = ListingConfig(source="webdataset", path=str(path), rows_per_shard=4, hidden_files=hidden)
        with listing(config) as listed:
            check_counters(listed)
            check_download(listed)
            named = Counter(of.removeprefix("0.tar: ") for _, of in listed.left_out)
            tar, texts = path.read_bytes(), listed.texts()
            places = [tuple(map(int, row["url"].rpartition("#")[2].split("-"))) for row in listed.rows]
            images = Counter(tar[start:end] for start, end in places if end > start)
            described = " ".join(str(row.get("error_message")) for row in listed.rows)
            for number, name in enumerate(names):
                if is_hidden(name) and not hidden:
                    assert named[name]
                elif name.endswith((".png", ".jpg")):
                    assert images[content[number]] == 1 or any(of.lower() == name.lower() for of in named), name
                    assert images[content[number]] <= 1
                elif name.lower().endswith((".txt", ".caption")):
                    assert texts[f"member {number} é"] + (named[name.lower()] or named[name]) >= 1, name
                    assert texts[f"member {number} é"] <= 1
                elif name.endswith(".json"):  # where it is the only caption
                    stem = name.removesuffix(".json").lower()
                    alone = not any(other.lower().startswith((f"{stem}.txt", f"{stem}.cap")) for other in names)
                    assert texts[f"member {number} é"] == 1 or not alone, name
            wholes = [row for row in listed.rows if row.get("reason") is None]
            assert len(wholes) == sum(images.values()), described
