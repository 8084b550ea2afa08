"""The files of the card stage over a whole run: Croissant is validated and read by MLCommons' own library."""

from __future__ import annotations

import json
from pathlib import Path

import mlcroissant
import pytest

from dataprep.card.config import CardConfig
from dataprep.io.parquet import read_table
from dataprep.listing.config import ListingConfig
from pipeline.report.data_card_files import CROISSANT, TRAINING_CONTENT, build_data_card
from pipeline.store.run import Run
from tests.helpers.runs import DATA

LISTING = ListingConfig(source="table", path="list.csv")


@pytest.fixture
def croissant(run: Run) -> Path:
    """Croissant of a run, at its place in the run folder."""
    artifacts = run.artifacts()
    config = CardConfig(
        title="Zebras", licence="https://spdx.org/licenses/CC-BY-4.0", creator="Zoo", contact="a@b.test"
    )
    texts = build_data_card({stage: artifacts[stage] for stage in DATA}, config, LISTING)
    path = Path(run.path(CROISSANT))
    path.write_text(texts[CROISSANT])
    return path


def test_croissant_is_valid_and_says_what_is_known(croissant: Path) -> None:
    dataset = mlcroissant.Dataset(croissant)
    assert not dataset.metadata.ctx.issues.errors
    assert dataset.metadata.name == "Zebras"
    document = json.loads(croissant.read_text())
    assert document["conformsTo"][0].endswith("/1.1")
    assert document["rai:dataCollectionType"] == ["Web Scraping"]
    assert "http_404" in document["rai:dataCollectionMissingData"]
    assert "a@b.test" in document["rai:dataReleaseMaintenancePlan"]
    assert "datePublished" not in document  # not given, so not said


def test_croissants_records_are_the_rows_of_the_run(croissant: Path, run: Run) -> None:
    dataset = mlcroissant.Dataset(croissant)
    for records, stage, kind in (("download", "download", "download"), ("pairs", "pack", "pack")):
        shards = run.artifacts()[stage].shards
        wanted = [
            key for shard in shards for key in read_table(shard.files["parquet"], kind, ["key"])["key"].to_pylist()
        ]
        found = [record[f"{records}/key"].decode() for record in dataset.records(records)]
        assert sorted(found) == sorted(wanted) and wanted


def test_a_file_that_is_missing_is_seen(croissant: Path, run: Run) -> None:
    document = json.loads(croissant.read_text())
    del document["distribution"][2]
    croissant.write_text(json.dumps(document))
    with pytest.raises(mlcroissant.ValidationError):
        mlcroissant.Dataset(croissant)


def test_the_summary_is_written_beside_it(run: Run) -> None:
    artifacts = run.artifacts()
    texts = build_data_card({stage: artifacts[stage] for stage in DATA}, CardConfig(), LISTING)
    assert texts[TRAINING_CONTENT].startswith("# Public summary of training content\n")
