"""The section on codebooks and discriminators."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline.report.section import ReportInputs
from pipeline.report.sections.codes import collect_codes
from pipeline.store.artifact import Artifact, Manifest, describe_file


def make_stage(folder: Path, name: str, *rows: dict[str, Any]) -> Artifact:
    """Returns a finished stage with these rows in its log."""
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Artifact(str(folder), Manifest(name, "x", {}, {}, [describe_file(str(folder), "log.jsonl")], {}, 1.0, {}))


def test_the_last_values_of_each_stage_are_shown(tmp_path: Path) -> None:
    vq = [
        {"step": 1, "codes_used": 0.5, "perplexity": 9.0, "codes_revived": 0.25, "reconstruction": 0.2},
        {"step": 2, "codes_used": 0.75, "perplexity": 12.34, "codes_revived": 0.0, "reconstruction": 0.1},
        {"step": 3, "adversarial_generator": 0.5, "adversarial_diversity": 0.9, "validation_psnr": 21.5},
    ]
    artifacts = {
        "clip": make_stage(tmp_path / "clip", "clip", {"step": 1, "accuracy": 0.9}),
        "train.base": make_stage(tmp_path / "base", "train.base", {"step": 1, "loss": 1.0}),
        "train.vq": make_stage(tmp_path / "vq", "train.vq", *vq),
        "train.sr": make_stage(tmp_path / "sr", "train.sr", {"step": 1, "accuracy": 0.4}),
    }
    content = collect_codes(ReportInputs(artifacts, {}, {}))
    assert content is not None
    tables = {table["title"]: list(table["rows"]) for table in content.values["tables"]}
    assert tables["Codebooks"] == [("train.vq", "0.75", "12.3", "0", "0.1", "21.5")]
    assert tables["Prediction of codes"] == [("train.sr", "0.4", "")]
    assert tables["Discriminators"] == [("train.vq", "0.5", "", "", "", "", "0.9")]


def test_a_run_without_them_has_no_such_section(tmp_path: Path) -> None:
    artifacts = {"train.base": make_stage(tmp_path / "base", "train.base", {"step": 1, "loss": 1.0})}
    assert collect_codes(ReportInputs(artifacts, {}, {})) is None
