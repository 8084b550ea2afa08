"""The data card: counts, and escaping of text from lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from dataprep.card.config import CardConfig
from dataprep.card.croissant import build_croissant
from dataprep.card.facts import MOST, DataCounts, build_facts, count_shard
from dataprep.card.markdown import render_card
from dataprep.io.parquet import read_table, write_table
from dataprep.io.source_column import SOURCE_COLUMN

FUNNEL = [{"filter": "min_side", "reason": "shorter side below 64 pixels", "in": 4, "dropped": 1, "kept": 3}]
ARTIFACTS = [{"stage": "listing", "fingerprint": "f", "files": 1, "bytes": 12345, "sha256": "ab"}]


def shard(folder: Path, **columns: Any) -> tuple[Path, Path, Path]:
    """Five rows: three kept, one dropped, one disallowed by robots.txt."""
    status = ["success"] * 4 + ["failed_to_download"]
    reason = pa.array([None] * 4 + ["robots_txt"], pa.string())
    errors = pa.array([None] * 4 + ["disallowed"], pa.string())
    tables = {
        "download": {
            "url": [f"http://{'www.' * (row < 2)}a.test/{row}" for row in range(5)],
            "status": status,
            "reason": reason,
            "error_message": errors,
        }
        | columns,
        "annotations": {
            "language": ["en", "en", "zh", "en", "en"],
            "caption": ["a woman", "a man and a woman", "红色圆形", "a boy", ""],
            "width": pa.array([64, 300, 40, 5, None], pa.int32()),
            "height": pa.array([640, 301, 90, 5, None], pa.int32()),
        },
        "selection": {
            "keep": [True, True, True, False, False],
            "split": pa.array(["train", "validation", "train", None, None], pa.string()),
        },
    }
    for kind, values in tables.items():
        write_table(pa.table(values), folder / f"{kind}.parquet", kind)
    return folder / "download.parquet", folder / "annotations.parquet", folder / "selection.parquet"


def told(paths: tuple[Path, Path, Path], config: CardConfig | None = None, times: int = 1) -> dict[str, Any]:
    counts = DataCounts()
    for _ in range(times):
        count_shard(*paths, counts)
    sources = {"": {"source": "table", "path": "list.csv", "limit": None}}
    return build_facts(counts, sources, config or CardConfig())


def test_counts_add_up_over_shards(tmp_path: Path) -> None:
    paths = shard(tmp_path, LICENSE=["CC0", "CC0", None, "CC0", "CC-BY"])
    found = told(paths, times=2)
    assert (found["rows"], found["kept"]) == (10, 6)
    assert found["statuses"] == {"success": 8, "failed_to_download": 2}
    assert found["reasons"] == {"robots_txt": 2}
    assert found["opt_outs"] == {"robots_txt": 2, "robots_tag": 0, "tdm": 0, "hash_opt_out": 0}
    assert found["licences"] == {"CC0": 4, "not given": 2}  # of kept rows alone
    assert found["languages"] == {"en": 4, "zh": 2}
    assert found["sides"] == {"below 64": 2, "from 64": 2, "from 256": 2}
    assert found["splits"] == {"train": 4, "validation": 2}
    assert found["hosts"] == {"number": 1, "exact": True, "most_images": {"a.test": 6}}
    (source,) = found["sources"]
    assert source == {"name": "", "source": "table", "path": "list.csv"} | {
        "rows": 10,
        "kept": 6,
        "licences": found["licences"],
    }


def test_people_hosts_and_faces_of_kept_rows_are_audited(tmp_path: Path) -> None:
    paths = shard(tmp_path, url=[f"https://{host}/" for host in ("a.fr", "www.b.fr", "c.com", "d.de", "e.de")])
    table = read_table(paths[1], "annotations").append_column("faces", pa.array([1, 2, 0, 1, None], pa.int32()))
    write_table(table, paths[1], "annotations")
    found = told(paths, times=5)
    audit = found["audit"]
    assert (audit["people"]["women"], audit["people"]["men"], audit["people"]["boys"]) == (10, 5, 0)
    assert audit["countries"] == {"fr": 10}
    assert audit["faces"] == {"0": 5, "1": 5, "2": 5}
    text = render_card(found, FUNNEL, ARTIFACTS)
    for part in ("## Audit", "| women | 10 |", "| men | 5 | and (5, 3x) |", "| fr | 10 |", "no detector finds all"):
        assert part in text, part
    assert "no detector" not in render_card(told(shard(tmp_path)), FUNNEL, ARTIFACTS)


def test_text_labels_and_heads_of_kept_rows_are_audited(tmp_path: Path) -> None:
    paths = shard(tmp_path)
    area = pa.array([0.0, 0.3, 0.6, 0.9, None], pa.float32())
    write_table(read_table(paths[1], "annotations").append_column("text_area", area), paths[1], "annotations")
    scores = {"label_medium": ["a photo", "a map", "a photo", "a map", None], "nsfw": [0.1, 0.9, 0.6, 0.9, None]}
    write_table(pa.table({"clip_similarity": [0.1] * 5} | scores), tmp_path / "scores.parquet", "scores")
    counts = DataCounts()
    counts.audit.expect_labels({"medium": ["a photo", "a map", "a painting"]})
    count_shard(*paths, counts, tmp_path / "scores.parquet")
    found = build_facts(counts, {"": {"source": "table"}}, CardConfig())
    assert found["audit"]["text"] == {"none": 1, "below 1%": 0, "from 1%": 0, "from 5%": 0} | {
        "from 20%": 1,
        "from 50%": 1,
    }
    assert found["audit"]["labels"] == {"medium": {"a photo": 2, "a map": 1, "a painting": 0}}
    assert found["audit"]["heads"] == {"nsfw": {"below 0.2": 1, "from 0.2": 0, "from 0.5": 1, "from 0.8": 1}}
    text = render_card(found, FUNNEL, ARTIFACTS)
    for part in ("| from 20% | 1 | 33.3% |", "| a photo | 2 | 66.7% |", "| a painting | 0 | 0.0% |", "Head `nsfw`"):
        assert part in text, part
    assert "also where none fits" in text and "annotate.text" in text
    plain = render_card(told(shard(tmp_path)), FUNNEL, ARTIFACTS)
    assert "annotate.text" not in plain and "score.labels" not in plain


def test_a_download_without_licences_says_so(tmp_path: Path) -> None:
    paths = shard(tmp_path)
    found = told(paths)
    assert found["licence_column"] is None
    assert "The list has no licence column" in render_card(found, FUNNEL, ARTIFACTS)


def test_the_card_has_its_sections(tmp_path: Path) -> None:
    config = CardConfig(title="Zebras", contact="remove@zebras.test", notes="Only zebras.")
    text = render_card(told(shard(tmp_path, license=["CC0"] * 5), config), FUNNEL, ARTIFACTS)
    _, metadata, card = text.split("---\n", 2)
    assert yaml.safe_load(metadata)["pretty_name"] == "Zebras"
    assert card.startswith("\n# Data card: Zebras\n\nOnly zebras.\n\n3 image-caption pairs kept of 5 rows.\n")
    for part in (
        "| robots\\_txt | 1 |",
        "| min\\_side | shorter side below 64 pixels | 4 | 1 | 3 |",
        "| CC0 | 3 |",
        "| listing | f | 1 | 12,345 | ab |",
        "Write to remove@zebras.test with the URL of the image.",
        "imagen-ray forget RUN URL",
    ):
        assert part in text, part
    scenes = build_facts(DataCounts(), {"": {"source": "scenes", "path": None}}, CardConfig())
    assert "nothing in it is from a third party" in render_card(scenes, [], [])


def test_filters_are_told_by_source_where_there_are_several(tmp_path: Path) -> None:
    facts = told(shard(tmp_path))
    found = {"in": 3, "dropped": 1, "kept": 2, "reason": "shorter side below 32 pixels"}
    text = render_card(facts, [FUNNEL[0] | {"sources": {"photos": found}}], ARTIFACTS)
    assert "| min\\_side | photos | shorter side below 32 pixels | 3 | 1 | 2 |" in text
    assert "By source" not in render_card(facts, FUNNEL, ARTIFACTS)


def test_values_from_a_list_cannot_leave_their_cell(tmp_path: Path) -> None:
    hostile = "a | b\n# <script>alert(1)</script> [x](javascript:y) `c` *d* & \\"
    text = render_card(told(shard(tmp_path, licence=[hostile] * 5)), FUNNEL, ARTIFACTS)
    (line,) = (line for line in text.splitlines() if "alert" in line)
    assert line.startswith("| a \\| b \\# &lt;script&gt;alert(1)&lt;/script&gt; \\[x\\](javascript:y) ")
    assert line.endswith(" | 3 |")


@pytest.mark.parametrize("kinds", [1, MOST, MOST + 5])
def test_long_tails_are_summed(tmp_path: Path, kinds: int) -> None:
    counts = DataCounts()
    counts.reasons.update({f"reason {index:02d}": kinds - index for index in range(kinds)})
    text = render_card(build_facts(counts, {"": {"source": "table"}}, CardConfig()), [], [])
    lines = [line for line in text.splitlines() if line.startswith("| reason ")]
    assert len(lines) - 1 == min(kinds, MOST)  # one is the head
    assert ("| 5 others | 15 |" in text) == (kinds > MOST)


def test_urls_without_a_host_are_not_counted(tmp_path: Path) -> None:
    paths = shard(tmp_path, url=["file:///a", "http://[", "https://b.test", "", None])
    assert told(paths)["hosts"]["most_images"] == {"b.test": 1}


def test_hosts_take_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataprep.card.facts.MOST_HOSTS", 2)
    paths = shard(tmp_path, url=[f"http://{name}.test/" for name in "abcde"])
    hosts = told(paths)["hosts"]
    assert (hosts["number"], hosts["exact"]) == (1, False)


SOURCES = {
    "web": {"source": "table", "path": "list.csv", "weight": 7.0, "licence": "cc-by-4.0"},
    "photos": {"source": "folder", "path": "photos", "weight": 2.0, "licence": "cc0-1.0"},
    "tars": {"source": "webdataset", "path": "set.tar", "weight": 1.0, "licence": None},
}


def of_several(folder: Path) -> dict[str, Any]:
    """A shard of each source; the web's has a licence column, with a null."""
    counts = DataCounts()
    for name in SOURCES:
        (folder / name).mkdir()
        columns: dict[str, Any] = {SOURCE_COLUMN: [name] * 5}
        columns |= {"listed_licence": ["MIT", None, "MIT", None, None]} if name == "web" else {}
        count_shard(*shard(folder / name, **columns), counts)
    return build_facts(counts, SOURCES, CardConfig())


def test_licences_are_told_by_source(tmp_path: Path) -> None:
    facts = of_several(tmp_path)
    assert [source["licences"] for source in facts["sources"]] == [
        {"MIT": 2, "cc-by-4.0": 1},  # the row's own licence, else the source's
        {"cc0-1.0": 3},
        {"not given": 3},
    ]
    assert [(source["rows"], source["kept"]) for source in facts["sources"]] == [(5, 3)] * 3
    assert facts["licences"] == {"cc0-1.0": 3, "not given": 3, "MIT": 2, "cc-by-4.0": 1}
    text = render_card(facts, [], [])
    for line in (
        "| web | table | list.csv | 7.0 | cc-by-4.0 | 5 | 3 |",
        "| web | MIT | 2 |",
        "| photos | cc0-1.0 | 3 |",
        "| tars | not given | 3 |",
    ):
        assert line in text, line


def test_croissant_has_the_sources_with_their_licences(tmp_path: Path) -> None:
    document = build_croissant(of_several(tmp_path), [], {"download": "d", "pack": "p"}, {16: "raw"})
    based = {item["name"]: item for item in document["isBasedOn"]}
    assert based["web"]["license"] == ["MIT", "cc-by-4.0"] and based["photos"]["license"] == ["cc0-1.0"]
    assert "license" not in based["tars"] and "license" not in document  # one of them is not known
    assert "3 of 5 rows kept, with weight 7 at training" in based["web"]["description"]
    assert "list.csv and photos and set.tar, web fetched from the web by URL" in document["rai:dataCollection"]
    assert all(any("listed_source" in field["@id"] for field in records["field"]) for records in document["recordSet"])
    facts = of_several_known(tmp_path)
    assert build_croissant(facts, [], {"download": "d", "pack": "p"}, {})["license"] == ["cc-by-4.0", "cc0-1.0"]


def of_several_known(folder: Path) -> dict[str, Any]:
    known = {name: SOURCES[name] for name in ("web", "photos")}
    return build_facts(DataCounts(), known, CardConfig())


def test_a_shard_that_was_forgotten_whole_is_of_no_source(tmp_path: Path) -> None:
    counts = DataCounts()
    count_shard(*shard(tmp_path, **{SOURCE_COLUMN: pa.nulls(5, pa.string())}), counts)
    found = build_facts(counts, SOURCES, CardConfig())["sources"]
    assert counts.rows == 5 and [source["rows"] for source in found] == [0, 0, 0]
