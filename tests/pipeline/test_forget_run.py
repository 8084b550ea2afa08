"""Forgetting between two runs of the pipeline itself: the second asks no host again, and has nothing of the sample."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_fakes import COPY, HOST, ROOT, VICTIM, caption, serve, write_list

from dataprep.schema import read_table
from pipeline.config import load_config
from pipeline.executor import execute
from pipeline.forget import forget
from pipeline.store import Run, verify

pytestmark = pytest.mark.usefixtures("local_ray")


def test_a_run_after_forgetting_takes_the_redacted_shards_over(tmp_path: Path) -> None:
    asked: list[str] = []
    with serve(asked) as hosts:
        address = "{}:{}".format(*hosts[HOST])
        write_list(tmp_path / "list.csv")
        text = (tmp_path / "list.csv").read_text().replace(HOST, address)
        (tmp_path / "list.csv").write_text(text)
        overrides = [f"run={tmp_path}/run", "listing.source=table", f"listing.path={tmp_path}/list.csv"]
        overrides += ["listing.rows_per_shard=5", "download.fetch.allow_private_addresses=true"]
        config = load_config(str(ROOT / "configs" / "smoke.yaml"), overrides)
        before = execute(config, "test", until="annotate").artifacts()
        requests = len(asked)
        outcome = forget(str(tmp_path / "run"), [f"http://{address}/{VICTIM:02d}.jpg"])
        assert outcome.samples == 2
        after = execute(config, "test", until="annotate").artifacts()
        assert len(asked) == requests
    assert {stage for stage in after if after[stage].folder == before[stage].folder} == set()
    events = [event for event in Run(str(tmp_path / "run")).events() if event["event"] == "shards_taken_over"]
    assert [(event["stage"], event["shards"], event["of"]) for event in events] == [
        ("download", 3, 3),
        ("annotate", 1, 3),
    ]
    assert after["listing"].manifest.counters == {"rows": 13, "shards": 3, "forgotten": 2}
    rows = [row for path in after["annotate"].files() for row in read_table(path, "annotations").to_pylist()]
    gone = {row["key"] for row in rows if row["caption"] == ""}
    assert gone == {"000010002", "000020001"}
    assert {row["caption"] for row in rows} == {"", *(caption(row) for row in range(13) if row not in (VICTIM, COPY))}
    assert [problem for _, _, problems in verify(Run(str(tmp_path / "run"))) for problem in problems] == []
