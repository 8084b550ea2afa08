"""Submitting, attaching and refusing, against a fake of Ray's Jobs API; and what a job packages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus
from tenacity import wait_none

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.jobs import client, submit
from pipeline.jobs.client import RUN_KEY, show_log
from pipeline.jobs.submit import submit_job
from pipeline.runtime.errors import StageError
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


@dataclass
class Cluster:
    """The jobs of a cluster; each ends with the next of ``endings`` once its log has been read."""

    endings: list[tuple[JobStatus, int | None]] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=lambda: ["one\n", "two\n"])
    breaks: int = 0  # how often the log's connection breaks after its first piece

    def list_jobs(self) -> list[Any]:
        return list(self.jobs)

    def submit_job(
        self, *, entrypoint: str, submission_id: str, runtime_env: dict[str, str], metadata: dict[str, str]
    ) -> None:
        if any(job.submission_id == submission_id for job in self.jobs):
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.add(submission_id, entrypoint, metadata)

    def add(self, name: str, entrypoint: str, metadata: dict[str, str] | None = None) -> None:
        started = 1000 * len(self.jobs)
        job = SimpleNamespace(submission_id=name, entrypoint=entrypoint, metadata=metadata, start_time=started)
        job.status, job.driver_exit_code, job.message = JobStatus.RUNNING, None, None
        self.jobs.append(job)

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for index, text in enumerate(self.log):
            if index and self.breaks:
                self.breaks -= 1
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield text
        job = next(job for job in self.jobs if job.submission_id == name)
        job.status, job.driver_exit_code = self.endings.pop(0)

    def get_job_logs(self, name: str) -> str:
        return "".join(self.log)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    for module in (submit, client):
        monkeypatch.setattr(module, "JobSubmissionClient", lambda address: made)
    monkeypatch.setattr(client.time, "sleep", lambda seconds: None)
    return made


def test_a_job_is_named_after_its_run_and_ends_the_command_with_its_status(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.endings = [(JobStatus.FAILED, 2), (JobStatus.STOPPED, None), (JobStatus.SUCCEEDED, 0)]
    arguments = (SMOKE, [f"run={tmp_path}/my run", "seed=1"], "http://head", True)
    assert [submit_job(*arguments) for _ in range(3)] == [2, 1, 0]
    assert capsys.readouterr().out == "one\ntwo\n" * 3
    names = [job.submission_id for job in cluster.jobs]
    assert [name.rpartition("-")[2] for name in names] == ["1", "2", "3"]
    assert {name.rpartition("-")[0] for name in names} == {names[0].rpartition("-")[0]}
    assert names[0].startswith("my-run-")
    words = f"python -m pipeline run configs/smoke.yaml 'run={tmp_path}/my run' seed=1"
    assert [job.entrypoint for job in cluster.jobs] == [words] * 3


def test_a_second_submission_attaches_to_the_running_job(cluster: Cluster, tmp_path: Path) -> None:
    arguments = (SMOKE, [f"run={tmp_path}/run"], "http://head")
    assert submit_job(*arguments, False) == 0
    cluster.endings = [(JobStatus.SUCCEEDED, 0)]
    assert submit_job(*arguments, True) == 0
    assert len(cluster.jobs) == 1
    assert submit_job(*arguments, False) == 0  # the first job has ended: a second one resumes
    assert len(cluster.jobs) == 2


def test_other_arguments_than_those_of_the_running_job_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    with pytest.raises(UserError, match=r"already runs there with other arguments .*ray job stop run-"):
        submit_job(SMOKE, [f"run={tmp_path}/run", "seed=3"], "http://head", False)
    submit_job(SMOKE, [f"run={tmp_path}/other", "seed=3"], "http://head", False)
    assert len(cluster.jobs) == 2


def test_the_later_of_two_simultaneous_submissions_attaches(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    monkeypatch.setattr(submit, "list_jobs", lambda client, root: [])
    assert submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False) == 0
    assert len(cluster.jobs) == 1


def test_a_job_that_was_deleted_leaves_its_number_free(cluster: Cluster, tmp_path: Path) -> None:
    cluster.endings = [(JobStatus.SUCCEEDED, 0)] * 3
    arguments = (SMOKE, [f"run={tmp_path}/run"], "http://head", True)
    assert [submit_job(*arguments) for _ in range(2)] == [0, 0]
    del cluster.jobs[0]  # as `ray job delete` does
    assert submit_job(*arguments) == 0
    assert [job.submission_id.rpartition("-")[2] for job in cluster.jobs] == ["2", "3"]


def test_a_job_submitted_with_rays_own_command_is_found_in_run_json(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add("raysubmit_1", "python -m pipeline run configs/smoke.yaml run=" + str(tmp_path))
    storage.write_json(str(tmp_path / "run.json"), {"driver": {"job": "raysubmit_1"}})
    cluster.endings = [(JobStatus.SUCCEEDED, 0)]
    assert submit_job(SMOKE, [f"run={tmp_path}"], "http://head", True) == 0
    assert [job.submission_id for job in cluster.jobs] == ["raysubmit_1"]


def test_a_broken_connection_is_resumed_and_nothing_is_printed_twice(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.breaks, cluster.endings = 2, [(JobStatus.SUCCEEDED, 0)]
    assert submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", True) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_head_that_is_gone_or_was_restarted_is_an_error(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    name = cluster.jobs[0].submission_id
    monkeypatch.setattr(client, "ABSENCE_LIMIT", -1.0)
    cluster.breaks = 1
    with pytest.raises(StageError, match=r"has not answered .* submit it again"):
        client.follow_job(cluster, "http://head", name)
    cluster.endings = [(JobStatus.RUNNING, None)]
    monkeypatch.setattr(client, "find_job_by_id", lambda client, job: None)
    with pytest.raises(StageError, match=r"no longer has job .* submit it again"):
        client.follow_job(cluster, "http://head", name)


def test_logs_by_run_and_by_name(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="has no job of this name and none for this run"):
        show_log(str(run), "http://head", False)
    submit_job(SMOKE, [f"run={run}"], "http://head", False)
    name = cluster.jobs[0].submission_id
    assert capsys.readouterr().out == f"{name}\n"
    assert show_log(str(run), "http://head", False) == 0
    cluster.endings = [(JobStatus.FAILED, 2)]
    assert show_log(name, "http://head", True) == 2
    assert capsys.readouterr().out == "one\ntwo\n" * 2
    assert cluster.jobs[0].metadata == {RUN_KEY: str(run)}


def test_the_package_of_a_job_is_small_and_complete() -> None:
    """Ray's own reading of the ignore files, which both `submit` and Ray's own command use."""
    from ray._private.runtime_env.packaging import _dir_travel, get_excludes_from_ignore_files

    ignored = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    files: list[Path] = []
    _dir_travel(ROOT, ignored, lambda path: files.append(path) if path.is_file() else None, include_gitignore=True)
    names = {str(path.relative_to(ROOT)) for path in files}
    assert {"pyproject.toml", "configs/smoke.yaml", "pipeline/cli/main.py", "pipeline/report/page.css"} <= names
    assert not {name.split("/")[0] for name in names} & {".git", "tests", "docs", "benchmarks", "runs", ".venv"}
    assert sum(path.stat().st_size for path in files) < 2_800_000


@pytest.mark.parametrize("refusals", [1, 10**9])
def test_a_cluster_without_an_agent_is_waited_for_and_then_explained(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    """A head that was just started gets one; one whose port another Ray has never does."""
    monkeypatch.setattr(submit, "wait_fixed", lambda seconds: wait_none())
    monkeypatch.setattr(submit, "AGENT_TIMEOUT", 0.2)
    accept, asked = cluster.submit_job, list[str]()

    def refuse(**options: Any) -> None:
        asked.append(options["submission_id"])
        if len(asked) <= refusals:
            raise RuntimeError(
                "Request failed with status code 500: No available agent to submit job, please try again"
            )
        accept(**options)

    monkeypatch.setattr(cluster, "submit_job", refuse)
    if refusals == 1:
        assert submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False) == 0 and len(asked) == 2
        return
    monkeypatch.setattr(submit.console, "print", lambda *_, **__: None)
    with pytest.raises(UserError, match=r"--address http://head: .*52365 is taken.*--dashboard-agent-listen-port=PORT"):
        submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    assert not cluster.jobs


class LateLog(Cluster):
    """The connection of a log stays silent after the first piece, as Ray's does for seconds after the end."""

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        yield self.log[0]
        job = next(job for job in self.jobs if job.submission_id == name)
        job.status, job.driver_exit_code = self.endings.pop(0)
        await asyncio.sleep(600)
        yield "too late"


def test_a_log_that_ends_late_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = LateLog(endings=[(JobStatus.FAILED, 3)])
    for module in (submit, client):
        monkeypatch.setattr(module, "JobSubmissionClient", lambda address: cluster)
    monkeypatch.setattr(client, "POLL_SOON", 0.01)
    assert submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", True) == 3
    assert capsys.readouterr().out == "one\ntwo\n"  # each once
