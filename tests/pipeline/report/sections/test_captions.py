"""The section on written captions: old and new side by side."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa

from dataprep.io.parquet import read_table, write_table
from pipeline.report.build import render_page
from pipeline.report.section import ReportInputs
from pipeline.report.sections.captions import SECTION, collect_captions
from pipeline.store.artifact import Artifact, Manifest, describe_file
from tests.helpers.runs import Made

PROMPTS = {"long": {"prompt": "Describe it.", "max_tokens": 9}, "short": {"prompt": "Name it.", "max_tokens": 3}}


def write_captions(made: Made, folder: Path) -> Artifact:
    """Writes captions of a finished run as stage caption does; the fourth row of a shard has no long one."""
    folder.mkdir()
    for shard in made.artifacts["select"].shards:
        keys = read_table(shard.files["parquet"], "selection", ["key"])["key"].to_pylist()
        long = [None if row == 3 else f"a long <b>caption</b> of {key}" for row, key in enumerate(keys)]
        columns = {"key": keys, "long": long, "short": [f"short {key}" for key in keys]}
        write_table(pa.table(columns), folder / f"{shard.id:05d}.parquet", "columns")
    outputs = [describe_file(str(folder), path.name) for path in sorted(folder.iterdir())]
    config = {"caption": {"model": "models/tiny", "prompts": PROMPTS}, "names": {"": ["long", "short"]}}
    counters = {"captioned": 7, "captions": 13, "empty": 1, "cut": 2}
    return Artifact(str(folder), Manifest("caption", "x", {}, config, outputs, counters, 1.0, {}))


def test_old_and_new_captions_are_side_by_side(finished_run: Made, tmp_path: Path) -> None:
    artifacts = finished_run.artifacts | {"caption": write_captions(finished_run, tmp_path / "c")}
    content = collect_captions(ReportInputs(artifacts, {}, {}))
    assert content is not None
    values = content.values
    assert values["names"] == ["long", "short"] and values["counts"][2][1] == 1
    kept = {row["key"]: row for row in values["rows"]}
    assert kept and all(row["written"][1] == f"short {key}" for key, row in kept.items())
    assert all((row["written"][0] is None) == key.endswith("3") for key, row in kept.items())
    assert all(row["caption"].startswith("a zebra numbered") and row["src"] for row in kept.values())
    page = render_page("a run", finished_run.record(), {"captions": SECTION}, {"captions": content})
    assert "a long &lt;b&gt;caption&lt;/b&gt; of 000000000" in page and "<b>caption" not in page


def test_a_run_without_written_captions_has_no_section(finished_run: Made) -> None:
    assert collect_captions(ReportInputs(finished_run.artifacts, {}, {})) is None
