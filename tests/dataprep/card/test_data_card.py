"""The data card: counts, and escaping of text from lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from dataprep.card.config import CardConfig
from dataprep.card.facts import MOST, DataCounts, build_facts, count_shard
from dataprep.card.markdown import render_card
from dataprep.io.parquet import write_table

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
    return build_facts(counts, {"source": "table", "path": "list.csv", "limit": None}, config or CardConfig())


def test_counts_add_up_over_shards(tmp_path: Path) -> None:
    paths = shard(tmp_path, LICENSE=["CC0", "CC0", None, "CC0", "CC-BY"])
    found = told(paths, times=2)
    assert (found["rows"], found["kept"]) == (10, 6)
    assert found["statuses"] == {"success": 8, "failed_to_download": 2}
    assert found["reasons"] == {"robots_txt": 2}
    assert found["opt_outs"] == {"robots_txt": 2, "robots_tag": 0, "tdm": 0}
    assert found["licences"] == {"CC0": 4, "not given": 2}  # of kept rows alone
    assert found["languages"] == {"en": 4, "zh": 2}
    assert found["sides"] == {"below 64": 2, "from 64": 2, "from 256": 2}
    assert found["splits"] == {"train": 4, "validation": 2}
    assert found["hosts"] == {"number": 1, "exact": True, "most_images": {"a.test": 6}}
    assert found["source"] == {"source": "table", "path": "list.csv"}


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
    scenes = build_facts(DataCounts(), {"source": "scenes", "path": None}, CardConfig())
    assert "nothing in it is from a third party" in render_card(scenes, [], [])


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
    text = render_card(build_facts(counts, {"source": "table"}, CardConfig()), [], [])
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
