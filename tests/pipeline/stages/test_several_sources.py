"""A run over a list of URLs, a folder and tars, mixed 70 to 20 to 10: from the config to the batches and the card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlcroissant
import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import read_table
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.execution.executor import run_pipeline
from pipeline.lineage.trace import trace_sample
from pipeline.planner.catalog import Assumptions
from pipeline.planner.rates import count_urls
from pipeline.report.section import ReportInputs
from pipeline.report.sections.source import collect_source
from pipeline.stages.graph import list_stages
from pipeline.stages.select import SelectStageConfig
from pipeline.stages.train import TrainStageConfig
from pipeline.store.run import Run
from tests.helpers.images import encoded, picture
from tests.helpers.lists import write_csv
from tests.helpers.plans import SMOKE
from tests.helpers.tars import write_tar
from tests.helpers.web import Web, serve_web
from train.loader.config import LoaderConfig
from train.loader.loader import TRAIN, Loader
from train.loader.reader import Reader
from train.loader.shard_index import index_shards

ROWS = {"web": 60, "photos": 50, "tars": 40}
WEIGHTS = {"web": 70.0, "photos": 20.0, "tars": 10.0}


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    with serve_web() as site:
        yield site


def image(source: str, row: int) -> bytes:
    return encoded(picture(1000 * [*ROWS].index(source) + row))


def make_config(folder: Path, web: Web, *overrides: str, **changes: dict[str, Any]) -> RunConfig:
    """Writes the sources below ``folder``; ``changes`` are keys of a source to replace."""
    folder.mkdir(exist_ok=True)
    host = f"http://{web.address[0]}:{web.address[1]}"
    rows = []
    for row in range(ROWS["web"]):
        web.put(f"/{row}.png", image("web", row))
        rows.append((f"{host}/{row}.png", f"a web photo of thing {row}", "CC-BY" if row % 2 else ""))
    write_csv(folder / "list.csv", ("url", "caption", "LICENSE"), rows)
    (folder / "photos").mkdir(exist_ok=True)
    for row in range(ROWS["photos"]):
        (folder / "photos" / f"{row:02d}.png").write_bytes(image("photos", row))
        (folder / "photos" / f"{row:02d}.txt").write_text(f"an own photo of thing {row}")
    members = [(f"{row:02d}.png", image("tars", row)) for row in range(ROWS["tars"])]
    texts = [(f"{row:02d}.txt", f"a photo in a tar of thing {row}".encode()) for row in range(ROWS["tars"])]
    write_tar(folder / "set.tar", sorted(members + texts))
    sources: dict[str, dict[str, Any]] = {
        "web": {"source": "table", "path": str(folder / "list.csv")},
        "photos": {"source": "folder", "path": str(folder / "photos"), "licence": "cc-by-4.0"},
        "tars": {"source": "webdataset", "path": str(folder / "set.tar"), "licence": "cc0-1.0"},
    }
    for name, weight in WEIGHTS.items():
        sources[name] |= {"weight": weight} | changes.get(name, {})
    listing = json.dumps({"rows_per_shard": 20, "sources": sources})
    fetch = ["download.fetch.allow_private_addresses=true", "download.fetch.obey_robots_txt=false"]
    words = [f"run={folder}/run", f"listing={listing}", *fetch, "cluster.cpus=1", *overrides]
    return load_config(SMOKE, words)


def source_of(key: str) -> str:
    """Returns the source of a sample: 3 shards of the web, 3 of photos, 2 of tars, each of 20 rows at most."""
    return [*["web"] * 3, *["photos"] * 3, *["tars"] * 2][int(key[:5])]


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_three_sources_from_the_config_to_batches_and_card(tmp_path: Path, web: Web) -> None:
    config = make_config(tmp_path / "set", web, photos={"select": {"min_alpha_share": 0.0}})
    run = run_pipeline(config, "run", until="card")
    artifacts = run.artifacts()
    check_batches(run, config)
    check_card(run)
    tables = collect_source(ReportInputs(artifacts, {}, {})).values["tables"]
    sources = next(table for table in tables if table["title"] == "Sources")["rows"]
    assert [(row[0], row[3], row[5]) for row in sources] == [("web", 60, 3), ("photos", 50, 3), ("tars", 40, 2)]
    (trace,) = trace_sample(run.root, "000040003")
    assert trace["source"]["path"] == str(tmp_path / "set" / "photos") and trace["source"]["row"] == 23
    assert count_urls(config, Assumptions())[1] == "assumed"
    # Another weight trains the cascade again, and nothing else; a licence changes the card alone.
    funnel = storage.read_json(artifacts["select"].path("funnel.json"))
    assert [{name: step["in"] for name, step in funnel[0]["sources"].items()}] == [ROWS]
    config = make_config(tmp_path / "set", web)
    changed = make_config(tmp_path / "set", web, tars={"weight": 20.0})
    assert name_changed(config, changed) == ["card", "train.base", "train.sr32", "train.sr64"]
    licensed = make_config(tmp_path / "set", web, tars={"licence": "mit"})
    assert name_changed(config, licensed) == ["card"]


def test_thresholds_of_a_source_are_of_select_and_checked(tmp_path: Path, web: Web) -> None:
    config = make_config(tmp_path / "set", web)
    stricter = make_config(tmp_path / "set", web, tars={"select": {"min_side": 40}})
    assert name_changed(config, stricter) == ["select", "card"]
    select = next(stage for stage in list_stages(stricter) if stage.name == "select")
    assert isinstance(select.config, SelectStageConfig) and select.config.sources == {"tars": {"min_side": 40}}
    assert "listing" in select.inputs  # it says which shards are whose
    listing = next(stage for stage in list_stages(stricter) if stage.name == "listing")
    assert listing.type.sources is not None and listing.type.sources(stricter)
    for keys, message in (
        (
            {"exact_duplicates": False},
            r"listing\.sources\.tars\.select.*exact_duplicates is for the rows of all sources",
        ),
        ({"max_caption_words": 1}, r"listing\.sources\.tars\.select: min_caption_words 2 is above"),
    ):
        with pytest.raises(UserError, match=message):
            make_config(tmp_path / "set", web, tars={"select": keys})
    missing = make_config(tmp_path / "set", web, tars={"select": {"max_faces": 0}})
    with pytest.raises(UserError, match=r"listing\.sources\.tars\.select\.max_faces: needs the column faces"):
        listing.type.sources(missing)


def name_changed(before: RunConfig, after: RunConfig) -> list[str]:
    """Returns the stages whose config differs."""
    pairs = zip(list_stages(before), list_stages(after), strict=True)
    return [one.name for one, other in pairs if one.config.to_json() != other.config.to_json()]


def check_batches(run: Run, config: RunConfig) -> None:
    """Shares over an epoch, and the same global batches for any number of ranks and from any step."""
    pack = run.artifacts()["pack"]
    stage = next(stage.config for stage in list_stages(config) if stage.name == "train.base")
    assert isinstance(stage, TrainStageConfig) and stage.mix.sources == WEIGHTS
    index = index_shards(pack.files(), None, ("pixels_16",))

    def make_loader() -> Loader:
        return Loader.from_reader(Reader(index, LoaderConfig(), stage.mix), TRAIN, 0, 12)

    loader = make_loader()
    epoch = len(loader)
    keys = [key for step in range(-(-epoch // 12)) for key in loader.batch(step)["key"]][:epoch]
    counts = Counter(map(source_of, keys))
    print(f"{epoch} samples of an epoch: {dict(counts)}")
    assert all(abs(counts[name] - epoch * weight / 100) <= 2 for name, weight in WEIGHTS.items())
    for step in range(epoch // 12):
        whole = sorted(loader.batch(step)["key"])
        for world in (2, 3, 4):
            parts = [make_loader().batch(step, rank, world)["key"] for rank in range(world)]
            assert sorted(key for part in parts for key in part) == whole


def check_card(run: Run) -> None:
    """The card and Croissant tell rows, weights and licences of each source, and mlcroissant reads the latter."""
    card = Path(run.path("datacard.md")).read_text()
    kept = Counter(row["listed_source"] for row in read_pack(run))
    facts = json.loads(Path(run.artifacts()["card"].path("datacard.json")).read_text())
    assert {source["name"]: source["kept"] for source in facts["sources"]} == dict(kept)
    assert "| photos | folder |" in card and f"| tars | cc0-1.0 | {kept['tars']} |" in card
    assert {"CC-BY", "not given"} >= set(facts["sources"][0]["licences"]) > set()
    dataset = mlcroissant.Dataset(run.path("croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    document = json.loads(Path(run.path("croissant.json")).read_text())
    assert {item["name"]: item["license"] for item in document["isBasedOn"]} == {
        "web": ["CC-BY"],
        "photos": ["cc-by-4.0"],
        "tars": ["cc0-1.0"],
    }
    found = Counter(record["pairs/listed_source"].decode() for record in dataset.records("pairs"))
    assert found == kept


def read_pack(run: Run) -> list[dict[str, Any]]:
    tables = [read_table(path, "pack", ["key", "listed_source"]) for path in run.artifacts()["pack"].files()]
    return [row for table in tables for row in table.to_pylist()]
