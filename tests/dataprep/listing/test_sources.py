"""Sources as one stream of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY, read_table
from dataprep.io.source_column import SOURCE_COLUMN
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import check_source, find_source_files, list_rows
from dataprep.listing.writer import SOURCES_FILE, write_listing
from tests.helpers.images import encoded, picture
from tests.helpers.lists import write_csv
from tests.helpers.tars import write_tar


def test_scenes_need_no_files(tmp_path: Path) -> None:
    config = ListingConfig.model_validate({"scenes": {"count": 7}, "rows_per_shard": 5})
    assert find_source_files(config) == []
    assert write_listing(config, 1, tmp_path) == {"records": 7, "rows": 7, "shards": 2, "usable": 7}
    assert "truth" in read_table(tmp_path / "00000.parquet", "listing").column_names


def three_sources(folder: Path) -> dict[str, Any]:
    """Makes a list of 7 URLs with scores, a folder of 4 images and a tar of 3 samples; returns their configs."""
    rows = [(f"http://a.test/{row}", f"web {row}", "0.5") for row in range(7)]
    write_csv(folder / "list.csv", ("URL", "TEXT", "punsafe"), rows)
    (folder / "photos").mkdir()
    for row in range(4):
        (folder / "photos" / f"{row}.png").write_bytes(encoded(picture(row)))
        (folder / "photos" / f"{row}.txt").write_text(f"photo {row}")
    members = [(f"{row}.{kind}", data) for row in range(3) for kind, data in (("png", b"x"), ("txt", b"tar"))]
    write_tar(folder / "set.tar", members)
    return {
        "web": {"source": "table", "path": str(folder / "list.csv"), "weight": 7},
        "photos": {"source": "folder", "path": str(folder / "photos"), "weight": 2, "limit": 3},
        "tars": {"source": "webdataset", "path": str(folder / "set.tar"), "weight": 1},
    }


def test_several_sources_have_shards_of_their_own(tmp_path: Path) -> None:
    config = ListingConfig.model_validate({"sources": three_sources(tmp_path), "rows_per_shard": 5})
    assert len(find_source_files(config)) == 1 + 8 + 1
    assert {"url", "caption", "listed_unsafe", "member", "file_sha256"} <= set(check_source(config))
    (tmp_path / "out").mkdir()
    counters = write_listing(config, 0, tmp_path / "out")
    assert counters == {"records": 14, "rows": 13, "shards": 4, "usable": 13, "beyond_limit": 1}
    shards = [read_table(tmp_path / "out" / f"{shard:05d}.parquet", "listing") for shard in range(4)]
    assert [set(shard[SOURCE_COLUMN].to_pylist()) for shard in shards] == [{"web"}, {"web"}, {"photos"}, {"tars"}]
    assert [shard.num_rows for shard in shards] == [5, 2, 3, 3]
    roots = [(shard.schema.metadata or {}).get(ROOT_KEY) for shard in shards]
    assert roots == [None, None, str(tmp_path / "photos").encode(), str(tmp_path).encode()]
    # Filters read what a list says of its rows in every shard: null where the source says nothing.
    assert [shard["listed_unsafe"].to_pylist()[0] for shard in shards] == [0.5, 0.5, None, None]
    assert json.loads((tmp_path / "out" / SOURCES_FILE).read_text()) == {
        "web": {"first_shard": 0, "shards": 2, "rows": 7, "usable": 7},
        "photos": {"first_shard": 2, "shards": 1, "rows": 3, "usable": 3},
        "tars": {"first_shard": 3, "shards": 1, "rows": 3, "usable": 3},
    }


def test_one_source_is_listed_as_if_there_were_no_others(tmp_path: Path) -> None:
    sources = three_sources(tmp_path)
    plain = {name: value for name, value in sources["photos"].items() if name != "weight"}
    for name, tree in (("alone", plain), ("named", {"sources": {"photos": plain}})):
        (tmp_path / name).mkdir()
        write_listing(ListingConfig.model_validate(tree), 0, tmp_path / name)
    alone, named = (read_table(tmp_path / name / "00000.parquet", "listing") for name in ("alone", "named"))
    assert SOURCE_COLUMN not in alone.column_names and not (tmp_path / "alone" / SOURCES_FILE).exists()
    assert named.drop_columns([SOURCE_COLUMN]).equals(alone)


def test_errors_name_the_source(tmp_path: Path) -> None:
    sources = three_sources(tmp_path) | {"lost": {"source": "table", "path": str(tmp_path / "none.csv"), "weight": 1}}
    config = ListingConfig.model_validate({"sources": sources})
    for read in (find_source_files, check_source, lambda config: list(list_rows(config, 0))):
        with pytest.raises(UserError, match=r"^listing\.sources\.lost\.path .*none.csv: no such file"):
            read(config)
    sources["lost"] |= {"path": sources["web"]["path"], "url_column": "link"}
    with pytest.raises(UserError, match=r"^listing\.sources\.lost\.url_column 'link': .*set listing.sources.lost.url_"):
        check_source(ListingConfig.model_validate({"sources": sources}))
