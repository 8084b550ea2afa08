"""The whole way, by the command, on the smoke config: killed in the middle, run again, submitted as a job.

One run is made by the command and killed once; another is made from nothing by a Ray job. They must not differ.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.browser import open_browser, open_page
from tests.helpers.paths import ROOT

SMOKE = "configs/smoke.yaml"
STAGES = (
    "listing download annotate encoder clip score select pack embed card "
    "train.base train.sr32 train.sr64 sample evaluate report"
)
# What holds clock times, or copies or hashes of them: everything else must be the same in every run.
TIMED = ("log.jsonl", "training.json", "tensorboard/", "report.html", "report.md")


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "pipeline", *arguments]
    return subprocess.Popen(
        words, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options
    )


def finish(process: subprocess.Popen[str], timeout: float = 900) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def events(run: Path) -> list[dict[str, Any]]:
    path = run / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def manifests(run: Path) -> dict[str, Path]:
    return {path.parent.parent.name: path for path in (run / "stages").glob("*/*/manifest.json")}


def losses(run: Path, stage: str) -> list[tuple[int, float]]:
    path = manifests(run)[stage].parent / "log.jsonl"
    return [(row["step"], row["loss"]) for row in map(json.loads, path.read_text().splitlines())]


def outputs(run: Path) -> dict[str, str]:
    """stage/path -> sha256 of every output that no clock goes into."""
    found = {}
    for stage, path in manifests(run).items():
        for output in json.loads(path.read_text())["outputs"]:
            if not any(part in output["path"] for part in TIMED):
                found[f"{stage}/{output['path']}"] = output["sha256"]
    return found


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A smoke run whose driver was killed while the base was training, and then run again to its end."""
    run = tmp_path_factory.mktemp("killed") / "run"
    first = command("run", SMOKE, f"run={run}")
    deadline = time.monotonic() + 400
    log = None
    while log is None:  # the first logged step: by then a checkpoint may or may not be there
        assert first.poll() is None, finish(first)
        assert time.monotonic() < deadline
        log = next((run / "stages").glob("train.base/*/log.jsonl"), None)
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    before = {stage: (path.stat().st_ino, path.read_bytes()) for stage, path in manifests(run).items()}
    status = finish(command("status", str(run)))
    second = finish(command("run", SMOKE, f"run={run}"))
    return {"run": run, "before": before, "status": status, "second": second}


def test_a_killed_run_is_finished_by_the_same_command(killed_run: dict[str, Any]) -> None:
    code, out, err = killed_run["second"]
    assert code == 0, err
    run: Path = killed_run["run"]
    assert out.strip() == str(run / "report.html")
    assert set(manifests(run)) == set(STAGES.split())
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    metrics = json.loads((run / "metrics.json").read_text())
    for split in ("seen", "heldout"):
        assert 0 <= metrics["composition"][split]["colour"] <= 1


def test_finished_stages_were_not_touched(killed_run: dict[str, Any]) -> None:
    before, run = killed_run["before"], killed_run["run"]
    assert set(before) == set(STAGES.split()[:10])
    after = {stage: (path.stat().st_ino, path.read_bytes()) for stage, path in manifests(run).items()}
    assert {stage: after[stage] for stage in before} == before
    resumed = [event["stage"] for event in events(run) if event["event"] == "stage_started"]
    assert resumed == [*STAGES.split()[:10], "train.base", "train.base", *STAGES.split()[11:]]


def test_status_knew_that_it_was_interrupted(killed_run: dict[str, Any]) -> None:
    code, out, _ = killed_run["status"]
    assert code == 0
    assert "interrupted" in out
    assert "train.base" in out


def test_a_finished_run_reruns_nothing_and_verifies(killed_run: dict[str, Any]) -> None:
    run: Path = killed_run["run"]
    started = len([event for event in events(run) if event["event"] == "stage_started"])
    code, _, err = finish(command("run", SMOKE, f"run={run}"))
    assert code == 0, err
    assert len([event for event in events(run) if event["event"] == "stage_started"]) == started
    code, out, err = finish(command("verify", str(run)))
    assert (code, err) == (0, "")
    assert out.count("ok") == len(STAGES.split())


def test_verify_names_a_changed_byte(killed_run: dict[str, Any]) -> None:
    run: Path = killed_run["run"]
    victim = manifests(run)["pack"].parent / "00001.parquet"
    data = victim.read_bytes()
    try:
        victim.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
        code, out, err = finish(command("verify", str(run)))
    finally:
        victim.write_bytes(data)
    assert code == 1
    assert f"{victim}: differs" in out
    assert "1 file differs" in err


def test_every_row_has_a_status_and_the_planted_trouble_is_found(killed_run: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    run: Path = killed_run["run"]
    folder = manifests(run)["download"].parent
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 120
    for row in rows:
        assert (row["status"] == "success") == (row["error_message"] is None)
        trouble = json.loads(row["truth"])["trouble"]
        if trouble in ("dead_link", "truncated", "mislabelled"):
            assert row["status"] != "success"
    quality = json.loads((manifests(run)["select"].parent / "quality.json").read_text())
    assert quality["troubles"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize(("width", "scheme"), [(380, "dark"), (1440, "light")])
def test_the_report_in_a_browser(killed_run: dict[str, Any], browser: Any, width: int, scheme: str) -> None:
    """Opens offline: no request, no error, nothing wider than the screen, every chart and section with content."""
    troubles: list[str] = []
    page = open_page(browser, width, scheme, troubles)
    page.goto(f"file://{killed_run['run']}/report.html")
    page.wait_for_selector("[data-chart=durations] .main-svg")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.click("#theme")
    assert page.evaluate("document.documentElement.dataset.theme") != scheme
    for name in ("summary", "samples", "metrics", "funnel", "data", "training", "run"):
        assert len(page.inner_text(f"#{name}")) > 40, name
    charts = page.evaluate(
        "[...document.querySelectorAll('[data-chart]')].map(n => n.querySelectorAll('.trace, .bars').length)"
    )
    assert len(charts) >= 6
    assert all(charts), charts
    rows = "[...document.querySelector('#funnel table').tBodies[0].rows]"
    column = rows + ".map(row => parseInt(row.cells[4].textContent))"
    page.click("#funnel th:nth-child(5)")  # sorted by rows kept
    rising = page.evaluate(column)
    assert rising == sorted(rising)
    page.click("#funnel th:nth-child(5)")
    assert page.evaluate(column) == rising[::-1]
    page.close()
    assert troubles == []


PROMPT = "two small red circles left of a blue square"


@pytest.fixture(scope="module")
def sampled(killed_run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Three images of the run, and what the command that made them said."""
    folder = tmp_path_factory.mktemp("sampled")
    words = ["sample", str(killed_run["run"]), PROMPT, "--num", "3", "--seed", "1"]
    return {"words": words, "folder": folder, "done": finish(command(*words, "--out", str(folder / "cat.png")))}


def test_sample_draws_from_the_run(sampled: dict[str, Any], tmp_path: Path) -> None:
    from PIL import Image

    from pipeline.cli.main import main

    folder = sampled["folder"]
    code, printed, err = sampled["done"]
    assert code == 0, err
    assert printed.split() == [str(folder / "cat.png"), *(str(folder / f"cat-{i:03d}.png") for i in range(3))]
    one = Image.open(folder / "cat-001.png")
    assert one.size == (64, 64)
    assert one.info["prompt"] == PROMPT
    again = tmp_path / "again.png"
    with pytest.raises(SystemExit) as ended:  # in another process, which this one is
        main([*sampled["words"], "--out", str(again)])
    assert not ended.value.code
    assert Image.open(again).tobytes() == Image.open(folder / "cat.png").tobytes()


ALONE = """
import sys
from eval.sampling.cascade import Cascade
samples = Cascade.from_pretrained(sys.argv[1])("two small red circles left of a blue square", num=3, seed=1)
samples.images[1].save(sys.argv[2])
print(sorted({"ray", "deepspeed", "pipeline"} & set(sys.modules)))
"""


def test_an_export_draws_the_same_without_the_run(
    killed_run: dict[str, Any], sampled: dict[str, Any], tmp_path: Path
) -> None:
    from PIL import Image

    from eval.sampling.cascade import Cascade
    from pipeline.inference.export import ExportOptions, export_run

    run, out = str(killed_run["run"]), tmp_path / "export"
    export_run(run, out, ExportOptions(licence="cc0-1.0"))
    words = [sys.executable, "-c", ALONE, str(out), str(tmp_path / "alone.png")]
    done = subprocess.run(words, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"  # neither Ray nor DeepSpeed nor this pipeline was there
    assert Image.open(tmp_path / "alone.png").tobytes() == Image.open(sampled["folder"] / "cat-001.png").tobytes()
    card = (out / "README.md").read_text()
    metrics = json.loads((out / "metrics.json").read_text())
    assert "license: cc0-1.0" in card and f"all {metrics['composition']['seen']['all']:.0%}" in card
    assert f"{metrics['clip_score']:.3f}" in card and "rendered scenes of simple shapes" in card
    export_run(run, tmp_path / "raw", ExportOptions(weights="raw"))
    raw, averaged = Cascade.from_pretrained(tmp_path / "raw"), Cascade.from_pretrained(out)
    assert raw.digest != averaged.digest
    assert averaged("a red circle", num=1, best_of=2).scores is not None


# ------------------------------------------------------------------------------------------------ as a Ray job


class Head:
    """A local Ray cluster of its own, started by the ray command."""

    def __init__(self, folder: Path, token: str | None, cpus: int = 2) -> None:
        import socket

        sockets = [socket.socket() for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        self.port, dashboard, agent = (one.getsockname()[1] for one in sockets)
        for one in sockets:
            one.close()
        self.address = f"http://127.0.0.1:{dashboard}"
        bin_folder = str(Path(sys.executable).parent)
        self.env = os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "RAY_AUTH_MODE": "disabled"}
        if token:
            self.env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        words = [f"{bin_folder}/ray", "start", "--head", "--block", f"--num-cpus={cpus}", f"--port={self.port}"]
        words += ["--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
        words += [f"--dashboard-agent-listen-port={agent}"]
        words += ["--object-store-memory=200000000", "--disable-usage-stats"]
        self.process = subprocess.Popen(
            words, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def wait(self) -> None:
        import urllib.error
        import urllib.request

        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"{self.address}/api/version", timeout=2).read()
                return
            except urllib.error.HTTPError:
                return  # it answers, and wants a token
            except OSError:
                time.sleep(0.3)
        raise AssertionError("the dashboard did not come up")

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module", params=["token", "open"])
def head(request: pytest.FixtureRequest) -> Iterator[Head]:
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: Ray's sockets live in it, and their paths are limited
    started = Head(folder, "a-secret-of-the-test-" + "0" * 20 if request.param == "token" else None)
    try:
        started.wait()
        yield started
    finally:
        started.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def job_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job") / "run"


def test_the_smoke_run_as_a_job(head: Head, job_folder: Path, killed_run: dict[str, Any]) -> None:
    """With a token it runs from nothing; without one the same run is submitted again, and nothing is rerun."""
    fresh = head.env["RAY_AUTH_MODE"] == "token"
    if fresh:
        nobody = {key: value for key, value in head.env.items() if not key.startswith("RAY_AUTH")}
        for env in (nobody | {"RAY_AUTH_MODE": "disabled"}, head.env | {"RAY_AUTH_TOKEN": "wrong" * 10}):
            code, _, err = finish(command("submit", SMOKE, f"run={job_folder}", "--address", head.address, env=env))
            assert code == 2, err
            assert "RAY_AUTH_TOKEN" in err
        assert not job_folder.exists()
    code, out, err = finish(command("submit", SMOKE, f"run={job_folder}", "--address", head.address, env=head.env))
    assert code == 0, out + err
    assert str(job_folder / "report.html") in out
    started = [event["stage"] for event in events(job_folder) if event["event"] == "stage_started"]
    assert started == STAGES.split()
    if fresh:
        assert manifests_equal(killed_run["run"], job_folder)


def manifests_equal(one: Path, other: Path) -> bool:
    """Two runs of the same config and seed: the same fingerprints, artifacts and losses."""
    assert {s: p.parent.name for s, p in manifests(one).items()} == {
        s: p.parent.name for s, p in manifests(other).items()
    }
    assert outputs(one) == outputs(other)
    for stage in ("encoder", "clip", "train.base", "train.sr32", "train.sr64"):
        assert losses(one, stage) == losses(other, stage)
        assert len(losses(one, stage)) >= 3
    return True


@pytest.mark.parametrize("head", ["open"], indirect=True)
def test_a_failed_job_fails_the_command(head: Head, tmp_path: Path) -> None:
    missing = [f"run={tmp_path}/run", "--address", head.address]
    (tmp_path / "list.csv").write_text("href,words\nhttp://127.0.0.1:9/a.jpg,a small picture\n")
    words = ["listing.source=table", f"listing.path={tmp_path}/list.csv", "cluster.retries=0", *missing]
    code, out, _ = finish(command("submit", SMOKE, *words, env=head.env))
    assert code == 2  # the driver's own: it found no column of URLs
    assert "error:" in out and "url_column" in out
