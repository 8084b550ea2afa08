"""The section on the source: what the listing counted, by name."""

from __future__ import annotations

from pathlib import Path

from dataprep.listing.config import ListingConfig
from dataprep.listing.writer import write_listing
from pipeline.report.section import ReportInputs
from pipeline.report.sections.source import collect_source
from pipeline.store.artifact import Artifact, Manifest, describe_file
from tests.helpers.images import encoded, picture


def collect(source: Path, out: Path) -> dict[str, list[tuple[object, ...]]]:
    out.mkdir()
    counters = write_listing(ListingConfig(source="folder", path=str(source), rows_per_shard=2), 0, out)
    outputs = [describe_file(str(out), path.name) for path in sorted(out.iterdir())]
    manifest = Manifest("listing", "x", {}, {}, outputs, counters, 1.0, {})
    tables = collect_source(ReportInputs({"listing": Artifact(str(out), manifest)}, {}, {})).values["tables"]
    return {table["title"]: list(table["rows"]) for table in tables}


def test_what_matches_nothing_is_named(tmp_path: Path) -> None:
    source = tmp_path / "set"
    (source / "@eaDir").mkdir(parents=True)
    for name in ("a.png", "b.png", "@eaDir/a.png"):
        (source / name).write_bytes(encoded(picture()))
    (source / "captions.csv").write_text("file_name,text\na.png,a house\ngone.png,a cat\n")
    (source / "film.mp4").touch()
    tables = collect(source, tmp_path / "l")
    assert tables["Records of the source"] == [
        ("records read", 3),
        ("rows", 3),
        ("rows that can have an image", 2),
        ("rows with reason incomplete", 1),
        ("of the rows that can have an image, without a caption", 1),
    ]
    assert tables["Rows of incomplete records"] == [
        ("incomplete", "gone.png", "captions.csv: the folder has no such image"),
        ("no caption", "b.png", ""),
    ]
    assert [(count, names) for _, count, names in tables["Left out and noted"]] == [(1, "@eaDir/"), (1, "film.mp4")]


def test_a_source_without_trouble_has_one_table(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.png").write_bytes(encoded(picture()))
    (tmp_path / "set" / "a.txt").write_text("a house")
    assert list(collect(tmp_path / "set", tmp_path / "l")) == ["Records of the source"]
