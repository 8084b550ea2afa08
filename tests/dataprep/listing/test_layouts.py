"""Column layouts of public lists: standard names and types."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from dataprep.io.errors import UserError
from dataprep.listing.columns import TEXT
from dataprep.listing.config import ListingConfig
from dataprep.listing.layouts import LAYOUTS, ColumnLayout, find_layout
from dataprep.listing.sources import check_source, list_rows

LISTS: dict[str, dict[str, list[Any]]] = {
    "laion": {
        "URL": ["http://a/1"],
        "TEXT": ["one"],
        "WIDTH": [640],
        "HEIGHT": [480],
        "similarity": [0.31],
        "hash": [-5],
        "punsafe": [0.1],
        "pwatermark": [0.2],
        "aesthetic": [6.5],
        "LANGUAGE": ["en"],
        "NSFW": ["UNLIKELY"],
        "LICENSE": ["?"],
        "md5": ["x"],
    },
    "commonpool": {
        "uid": ["u"],
        "url": ["http://a/1"],
        "text": ["one"],
        "original_width": [640],
        "original_height": [480],
        "clip_b32_similarity_score": [0.31],
        "clip_l14_similarity_score": [0.27],
        "face_bboxes": [[[0.1, 0.2, 0.3, 0.4]]],
        "sha256": ["s"],
    },
    "coyo": {
        "id": [1],
        "url": ["http://a/1"],
        "text": ["one"],
        "width": [640],
        "height": [480],
        "image_phash": ["ab"],
        "clip_similarity_vitb32": [0.31],
        "clip_similarity_vitl14": [0.27],
        "nsfw_score_opennsfw2": [0.1],
        "nsfw_score_gantman": [0.3],
        "watermark_score": [0.2],
        "aesthetic_score_laion_v2": [6.5],
    },
}
EXPECTED = {
    "listed_width": 640.0,
    "listed_height": 480.0,
    "listed_similarity_b32": 0.31,
    "listed_similarity_l14": 0.27,
    "listed_unsafe": 0.1,
    "listed_watermark": 0.2,
    "listed_aesthetic": 6.5,
    "listed_language": "en",
    "listed_nsfw": "UNLIKELY",
    "listed_licence": "?",
}
KEPT = {"laion": ["hash", "md5"], "commonpool": ["uid", "face_bboxes", "source_sha256"]}
KEPT["coyo"] = ["id", "image_phash", "nsfw_score_gantman"]


def listed(path: Path, **fields: Any) -> pa.Table:
    return next(list_rows(ListingConfig(source="table", path=str(path), **fields), 0))


@pytest.mark.parametrize("layout", ["auto", "named"])
@pytest.mark.parametrize("name", LISTS)
def test_parquet_in_a_public_layout(name: str, layout: str, tmp_path: Path) -> None:
    pq.write_table(pa.table(LISTS[name]), tmp_path / "list.parquet")
    table = listed(tmp_path / "list.parquet", layout=name if layout == "named" else "auto")
    (row,) = table.to_pylist()
    measured = LAYOUTS[name].listed
    assert table.column_names == ["url", "caption", *measured, *KEPT[name]]
    assert (row["url"], row["caption"]) == ("http://a/1", "one")
    assert {standard: row[standard] for standard in measured} == {standard: EXPECTED[standard] for standard in measured}


@pytest.mark.parametrize("name", LISTS)
def test_the_same_list_as_csv_has_numbers_too(name: str, tmp_path: Path) -> None:
    flat = {column: values for column, values in LISTS[name].items() if column != "face_bboxes"}
    pa_csv.write_csv(pa.table(flat), tmp_path / "list.csv")
    table = listed(tmp_path / "list.csv")
    for standard in LAYOUTS[name].listed:
        assert table[standard].to_pylist() == [EXPECTED[standard]]
        assert table.schema.field(standard).type == (pa.string() if standard in TEXT else pa.float64())


def test_text_that_is_not_a_number_is_null(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("URL,TEXT,punsafe\nhttp://a/1,a, 1e-2 \nhttp://a/2,b,n/a\nhttp://a/3,c,\n")
    assert listed(tmp_path / "l.csv")["listed_unsafe"].to_pylist() == [0.01, None, None]


def test_cc3m_and_cc12m(tmp_path: Path) -> None:
    (tmp_path / "cc3m.tsv").write_text("a cat\thttp://a/1\n")
    (tmp_path / "cc12m.tsv").write_text("http://a/1\ta cat\n")
    for name in ("cc3m", "cc12m"):
        for layout in ("auto", name):
            assert listed(tmp_path / f"{name}.tsv", layout=layout).to_pylist() == [
                {"url": "http://a/1", "caption": "a cat"}
            ]


def test_an_unknown_layout_keeps_its_columns(tmp_path: Path) -> None:
    columns = {"url": ["http://a/1"], "text": ["one"], "width": [1], "similarity": [0.5], "listed_unsafe": [0.1]}
    pq.write_table(pa.table(columns), tmp_path / "l.parquet")
    names = listed(tmp_path / "l.parquet").column_names
    assert names == ["url", "caption", "source_width", "similarity", "source_listed_unsafe"]
    assert find_layout("auto", list(columns)) is None


def test_a_named_layout_wants_its_columns_and_types(tmp_path: Path) -> None:
    pq.write_table(pa.table({"link": ["http://a"], "text": ["one"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table(LISTS["laion"] | {"punsafe": [[1]]}), tmp_path / "list.parquet")
    pq.write_table(pa.table(LISTS["laion"] | {"NSFW": [1]}), tmp_path / "label.parquet")
    pq.write_table(pa.table(LISTS["laion"] | {"TEXT": [{"en": "one"}]}), tmp_path / "caption.parquet")
    cases = [
        ("other.parquet", "listing.url_column: none recognised"),
        ("list.parquet", "column punsafe: listed_unsafe is of type list.*not a number; set listing.layout"),
        ("label.parquet", "column NSFW: listed_nsfw is of type int64, not text"),
        ("caption.parquet", "column 'TEXT' is of type struct.*not text; name another"),
    ]
    for name, message in cases:
        with pytest.raises(UserError, match=message):
            check_source(ListingConfig(source="table", path=str(tmp_path / name), layout="laion"))


def test_a_layout_from_outside_is_one_entry_of_the_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = ColumnLayout(("where",), ("what",), {"listed_aesthetic": ("beauty",)}, ("beauty",))
    monkeypatch.setitem(LAYOUTS, "dummy", layout)
    path = tmp_path / "list.csv"
    path.write_text("where,what,beauty\nhttp://a.test/1.jpg,a cat,5.5\n")
    for name in ("dummy", "auto"):
        (rows,) = list_rows(ListingConfig(source="table", path=str(path), layout=name), 0)
        assert rows.to_pylist() == [{"url": "http://a.test/1.jpg", "caption": "a cat", "listed_aesthetic": 5.5}]


def test_an_unknown_layout_names_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="'laoin' is not a layout; give one of auto, laion"):
        ListingConfig(source="table", path="list.csv", layout="laoin")
    assert ListingConfig.model_json_schema()["properties"]["layout"]["enum"] == ["auto", *LAYOUTS]
