"""Metrics of a run at Ray's endpoint, and the dashboard that asks for them."""

from __future__ import annotations

import json
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import cloudpickle

from pipeline.runtime import shard_map
from pipeline.runtime.run_metrics import TrainingMetrics, name_run
from pipeline.runtime.shard_map import map_shards
from pipeline.runtime.shard_worker import ShardTask
from pipeline.store.artifact import Shard
from tests.helpers.contexts import make_context
from tests.helpers.paths import ROOT

pytestmark = pytest.mark.usefixtures("local_ray")
cloudpickle.register_pickle_by_value(sys.modules[__name__])
DASHBOARD = ROOT / "deploy" / "grafana_dashboard.json"
LAST = "ray_imagen_ray_train_ranks"  # set last
ROW = {
    "step": 40,
    "loss": 0.5,
    "validation_loss": 0.6,
    "lr": 1e-3,
    "grad_norm": 2.0,
    "samples_per_second": 9.0,
    "mfu": 0.4,
    "memory_mb": 7.0,
    "skipped": 1,
    "data_ms": 1.0,
    "forward_ms": 2.0,
    "backward_ms": 4.0,
    "step_ms": 1.0,
}


class FailsOnce:
    """Counts its rows; the first try of shard 1 fails."""

    def __init__(self, note: str) -> None:
        self.note = Path(note)

    def __call__(self, task: ShardTask) -> dict[str, int]:
        if task.id == 1 and not self.note.exists():
            self.note.write_text("")
            raise OSError("not yet")
        return {"rows": 5, "success": 3, "http_404": 2, "damaged": 0, "bytes": 7}


def read_endpoint() -> dict[str, float]:
    """Returns the values at the metrics endpoint of this machine's Ray: ``name{label="value",...}`` -> value."""
    url = f"http://127.0.0.1:{ray.nodes()[0]['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 120  # exported every ten seconds
    while time.monotonic() < deadline:
        with urllib.request.urlopen(url) as answer:
            text = answer.read().decode()
        if LAST + "{" in text:
            break
        time.sleep(1)
    found = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"(ray_imagen_ray_\w+)\{(.*)\} (\S+)", line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            ours = ",".join(f"{name}={labels[name]}" for name in ("stage", "counter", "state") if name in labels)
            if labels["run"] != "scraped":  # of another test of this process
                continue
            found[f"{match[1]}:{ours}"] = float(match[3])
    return found


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[dict[str, float]]:
    """What the endpoint says after a stage over two shards, one of which is tried again, and a row of a training."""
    folder = tmp_path_factory.mktemp("metrics")
    (folder / "in.txt").write_text("")
    ctx = make_context(folder / "scraped", "download", cpus=2, retries=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_map, "BACKOFF", 0.0)
        map_shards(
            ctx,
            FailsOnce,
            {"note": str(folder / "note")},
            [Shard(i, {"in.txt": str(folder / "in.txt")}) for i in (0, 1)],
        )
    metrics = TrainingMetrics(ctx.run.stage_folder("train.base", "f"), "train.base")
    metrics.set_row(ROW)
    metrics.set_row({"step": 41})  # what a row lacks stays
    metrics.set_ranks(2)
    yield read_endpoint()


def test_endpoint_has_what_shards_counted(scraped: dict[str, float]) -> None:
    counted = {name.partition("counter=")[2]: value for name, value in scraped.items() if "counted_total" in name}
    assert counted == {"rows": 10, "success": 6, "http_404": 4, "bytes": 14}
    assert scraped["ray_imagen_ray_shard_retries_total:stage=download"] == 1
    shards = {state: scraped[f"ray_imagen_ray_shards:stage=download,state={state}"] for state in ("done", "waiting")}
    assert shards == {"done": 2, "waiting": 0}


def test_endpoint_has_the_last_row_of_a_training(scraped: dict[str, float]) -> None:
    assert scraped["ray_imagen_ray_train_loss:stage=train.base"] == 0.5
    assert scraped["ray_imagen_ray_train_step:stage=train.base"] == 41
    assert scraped["ray_imagen_ray_train_wait_share:stage=train.base"] == 1 / 8
    assert scraped["ray_imagen_ray_train_ranks:stage=train.base"] == 2


def test_dashboard_asks_for_what_is_exported(scraped: dict[str, float]) -> None:
    exported = {name.partition(":")[0] for name in scraped}
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"ray_imagen_ray_\w+", target["expr"])
    }
    assert asked == exported


@pytest.mark.parametrize(
    ("folder", "name"),
    [("/a/runs/demo/stages/download/f", "demo"), ("s3://bucket/runs/laion/stages/train.base/f", "laion")],
)
def test_a_run_is_named_by_its_folder(folder: str, name: str) -> None:
    assert name_run(folder) == name
