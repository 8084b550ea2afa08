"""What is submitted, attached to or refused, against a stand-in for Ray's Jobs API; and a job's package."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.job_submission import JobStatus

from dataprep import storage
from dataprep.schema import UserError
from pipeline import jobs, submit
from pipeline.context import StageError
from pipeline.jobs import RUN_KEY, show_log
from pipeline.submit import submit_job

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "configs" / "smoke.yaml")


@dataclass
class Cluster:
    """Jobs as Ray keeps them; each ends as the next of ``endings`` says once its log was read."""

    endings: list[tuple[JobStatus, int | None]] = field(default_factory=list)
    jobs: list[Any] = field(default_factory=list)
    log: list[str] = field(default_factory=lambda: ["one\n", "two\n"])
    breaks: int = 0  # times that the log's connection breaks after its first piece

    def list_jobs(self) -> list[Any]:
        return list(self.jobs)

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict, metadata: dict) -> None:
        if any(job.submission_id == submission_id for job in self.jobs):
            raise RuntimeError(f"Job with submission_id {submission_id} already exists")
        self.add(submission_id, entrypoint, metadata)

    def add(self, name: str, entrypoint: str, metadata: dict | None = None) -> None:
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
    for module in (submit, jobs):
        monkeypatch.setattr(module, "JobSubmissionClient", lambda address: made)
    monkeypatch.setattr(jobs.time, "sleep", lambda seconds: None)
    return made


def test_a_job_is_named_after_its_run_and_ends_the_command_with_its_status(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture
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


def test_a_run_that_a_job_works_on_is_attached_to(cluster: Cluster, tmp_path: Path) -> None:
    arguments = (SMOKE, [f"run={tmp_path}/run"], "http://head")
    assert submit_job(*arguments, False) == 0
    cluster.endings = [(JobStatus.SUCCEEDED, 0)]
    assert submit_job(*arguments, True) == 0
    assert len(cluster.jobs) == 1
    assert submit_job(*arguments, False) == 0  # it has ended: a second one goes on where it stopped
    assert len(cluster.jobs) == 2


def test_other_arguments_than_those_of_the_running_job_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    with pytest.raises(UserError, match=r"is at work there with other arguments .*ray job stop run-"):
        submit_job(SMOKE, [f"run={tmp_path}/run", "seed=3"], "http://head", False)
    submit_job(SMOKE, [f"run={tmp_path}/other", "seed=3"], "http://head", False)
    assert len(cluster.jobs) == 2


def test_who_comes_second_by_a_moment_attaches(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    monkeypatch.setattr(submit, "jobs_of", lambda client, root: [])
    assert submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False) == 0
    assert len(cluster.jobs) == 1


def test_a_job_that_was_deleted_leaves_its_number_free(cluster: Cluster, tmp_path: Path) -> None:
    cluster.endings = [(JobStatus.SUCCEEDED, 0)] * 3
    arguments = (SMOKE, [f"run={tmp_path}/run"], "http://head", True)
    assert [submit_job(*arguments) for _ in range(2)] == [0, 0]
    del cluster.jobs[0]  # as `ray job delete` does
    assert submit_job(*arguments) == 0
    assert [job.submission_id.rpartition("-")[2] for job in cluster.jobs] == ["2", "3"]


def test_a_job_of_rays_own_command_is_found_by_run_json(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add("raysubmit_1", "python -m pipeline run configs/smoke.yaml run=" + str(tmp_path))
    storage.write_json(str(tmp_path / "run.json"), {"driver": {"job": "raysubmit_1"}})
    cluster.endings = [(JobStatus.SUCCEEDED, 0)]
    assert submit_job(SMOKE, [f"run={tmp_path}"], "http://head", True) == 0
    assert [job.submission_id for job in cluster.jobs] == ["raysubmit_1"]


def test_a_broken_connection_is_taken_up_and_nothing_is_printed_twice(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    cluster.breaks, cluster.endings = 2, [(JobStatus.SUCCEEDED, 0)]
    assert submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", True) == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_a_head_that_stays_away_or_forgot_the_job_is_said(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit_job(SMOKE, [f"run={tmp_path}/run"], "http://head", False)
    name = cluster.jobs[0].submission_id
    monkeypatch.setattr(jobs, "ABSENT", -1.0)
    cluster.breaks = 1
    with pytest.raises(StageError, match=r"has not answered .* submit it again"):
        jobs.follow_job(cluster, "http://head", name)
    cluster.endings = [(JobStatus.RUNNING, None)]
    monkeypatch.setattr(jobs, "job_by_id", lambda client, job: None)
    with pytest.raises(StageError, match=r"does not know job .* submit it again"):
        jobs.follow_job(cluster, "http://head", name)


def test_logs_by_run_and_by_name(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    with pytest.raises(UserError, match="knows no job of that name nor one for that run"):
        show_log(str(run), "http://head", False)
    submit_job(SMOKE, [f"run={run}"], "http://head", False)
    name = cluster.jobs[0].submission_id
    assert capsys.readouterr().out == f"{name}\n"
    assert show_log(str(run), "http://head", False) == 0
    cluster.endings = [(JobStatus.FAILED, 2)]
    assert show_log(name, "http://head", True) == 2
    assert capsys.readouterr().out == "one\ntwo\n" * 2
    assert cluster.jobs[0].metadata == {RUN_KEY: str(run)}


def test_a_jobs_package_is_small_and_whole() -> None:
    """What Ray would package, by its own reading of the ignore files: for submit and for Ray's own command alike."""
    from ray._private.runtime_env.packaging import _dir_travel, get_excludes_from_ignore_files

    ignored = get_excludes_from_ignore_files(ROOT, include_gitignore=True)
    files: list[Path] = []
    _dir_travel(ROOT, ignored, lambda path: files.append(path) if path.is_file() else None, include_gitignore=True)
    names = {str(path.relative_to(ROOT)) for path in files}
    assert {"pyproject.toml", "configs/smoke.yaml", "pipeline/cli.py", "pipeline/report/page.css"} <= names
    assert not {name.split("/")[0] for name in names} & {".git", "tests", "docs", "benchmarks", "runs", ".venv"}
    assert sum(path.stat().st_size for path in files) < 2_000_000
