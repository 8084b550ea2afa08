"""Runs after a forget do not bring samples back."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard
from dataprep.io.parquet import read_table
from dataprep.io.redact import Forgotten
from dataprep.listing.config import ListingConfig
from dataprep.listing.writer import write_listing
from pipeline.config_loading import load_config
from pipeline.execution.executor import run_pipeline
from pipeline.lineage.forget import forget_samples
from pipeline.store.run import Run, verify_outputs
from tests.helpers.runs import COPY, HOST, ROOT, VICTIM, Made, caption, serve, url, write_list


def test_later_runs_do_not_bring_samples_back(run: Path, finished_run: Made, tmp_path: Path) -> None:
    """Neither by URL, which is not requested, nor by the same bytes under another URL; other rows keep their keys."""
    forget_samples(str(run), [url(VICTIM)])
    forgotten = Forgotten.read(str(run / "forgotten.json"))
    write_list(tmp_path / "list.csv")
    with open(tmp_path / "list.csv", "a") as file:
        file.write(f"http://{HOST}/{VICTIM:02d}.jpg?again,another caption,,\n")
    (tmp_path / "listing").mkdir()
    config = ListingConfig(source="table", path=str(tmp_path / "list.csv"), rows_per_shard=5)
    counters = write_listing(config, 0, tmp_path / "listing", forgotten.urls)
    assert counters == {"records": 14, "rows": 14, "shards": 3, "usable": 14, "forgotten": 2}
    fetch = DownloadConfig(fetch=FetchConfig(retries=0, allow_private_addresses=True), image_size=64)
    requests: list[str] = []
    (tmp_path / "download").mkdir()
    with serve(requests) as hosts:
        for shard in range(3):
            listing = tmp_path / "listing" / f"{shard:05d}.parquet"
            download_shard(listing, shard, tmp_path / "download", fetch, hosts, forgotten=forgotten.images)
    images = [path for path in requests if ".jpg" in path]
    assert len(images) == 12
    assert not {f"/{VICTIM:02d}.jpg", f"/{COPY:02d}.jpg"} & set(images)
    names = [f"{shard:05d}.parquet" for shard in range(3)]
    rows = [row for name in names for row in read_table(tmp_path / "download" / name, "download").to_pylist()]
    refused = {row["key"]: row["error_message"] for row in rows if row["error_message"] == "forgotten"}
    assert set(refused) == {"000010002", "000020001", "000020003"}
    # All but the last shard equal the redacted ones of the first run, which can be reused.
    for name in ("00000.parquet", "00001.parquet", "00001.tar"):
        redacted = run / "stages" / "download" / "downloadone" / name
        assert redacted.read_bytes() == (tmp_path / "download" / name).read_bytes()


@pytest.mark.usefixtures("local_ray")
def test_a_run_after_forgetting_reuses_the_redacted_shards(tmp_path: Path) -> None:
    urls: list[str] = []
    with serve(urls) as hosts:
        address = "{}:{}".format(*hosts[HOST])
        write_list(tmp_path / "list.csv")
        text = (tmp_path / "list.csv").read_text().replace(HOST, address)
        (tmp_path / "list.csv").write_text(text)
        overrides = [f"run={tmp_path}/run", "listing.source=table", f"listing.path={tmp_path}/list.csv"]
        overrides += ["listing.rows_per_shard=5", "download.fetch.allow_private_addresses=true"]
        config = load_config(str(ROOT / "configs" / "smoke.yaml"), overrides)
        before = run_pipeline(config, "test", until="annotate").artifacts()
        requests = len(urls)
        result = forget_samples(str(tmp_path / "run"), [f"http://{address}/{VICTIM:02d}.jpg"])
        assert result.samples == 2
        after = run_pipeline(config, "test", until="annotate").artifacts()
        assert len(urls) == requests
    assert {stage for stage in after if after[stage].folder == before[stage].folder} == set()
    events = [event for event in Run(str(tmp_path / "run")).events() if event["event"] == "shards_taken_over"]
    assert [(event["stage"], event["shards"], event["of"]) for event in events] == [
        ("download", 3, 3),
        ("annotate", 1, 3),
    ]
    counters = {"records": 13, "rows": 13, "shards": 3, "usable": 13, "forgotten": 2}
    assert after["listing"].manifest.counters == counters
    rows = [row for path in after["annotate"].files() for row in read_table(path, "annotations").to_pylist()]
    gone = {row["key"] for row in rows if row["caption"] == ""}
    assert gone == {"000010002", "000020001"}
    assert {row["caption"] for row in rows} == {"", *(caption(row) for row in range(13) if row not in (VICTIM, COPY))}
    assert [problem for _, _, problems in verify_outputs(Run(str(tmp_path / "run"))) for problem in problems] == []
