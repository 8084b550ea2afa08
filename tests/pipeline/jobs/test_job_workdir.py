"""The driver of a job runs from files that nothing deletes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.jobs.job_workdir import COPY_VARIABLE, JOB_SETTINGS
from tests.helpers.paths import ROOT

# Prints where it runs from.
PROBE = """
import json, os, sys
from pipeline.jobs.job_workdir import rerun_from_copy
rerun_from_copy(["again"])
print(json.dumps({"folder": os.getcwd(), "words": sys.argv[1:], "code": __file__}))
"""


def start(folder: Path, **env: str) -> dict[str, Any]:
    """Runs a package ``pipeline`` in ``folder`` as the entry point of a job does; returns what it prints."""
    for package in ("jobs", "store"):
        (folder / "pipeline" / package).mkdir(parents=True)
        (folder / "pipeline" / package / "__init__.py").touch()
    (folder / "pipeline" / "__init__.py").touch()
    (folder / "pipeline" / "__main__.py").write_text(PROBE)
    for module in ("jobs/job_workdir.py", "store/driver.py"):
        shutil.copy(ROOT / "pipeline" / module, folder / "pipeline" / module)
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", COPY_VARIABLE, JOB_SETTINGS)
    }
    words = [sys.executable, "-m", "pipeline", "first"]
    done = subprocess.run(words, cwd=folder, env=clean | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def test_a_job_runs_from_a_copy_that_is_deleted_with_it(tmp_path: Path) -> None:
    printed = start(tmp_path / "job", **{JOB_SETTINGS: "{}", "TMPDIR": str(tmp_path)})
    assert printed["words"] == ["again"]
    assert Path(printed["folder"]).parent == tmp_path and Path(printed["folder"]) != tmp_path / "job"
    assert printed["code"].startswith(printed["folder"])
    assert not Path(printed["folder"]).exists() and (tmp_path / "job" / "pipeline").exists()


@pytest.mark.parametrize("where", ["no job", "installed"])
def test_elsewhere_nothing_is_copied(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "no job":
        printed = start(tmp_path / "here")
        assert printed["words"] == ["first"] and printed["folder"] == str(tmp_path / "here")
        return
    from pipeline.jobs import job_workdir

    monkeypatch.setenv(JOB_SETTINGS, "{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_workdir.os, "execv", lambda *_: pytest.fail("executed again"))
    job_workdir.rerun_from_copy(["run"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_being_unpacked_is_copied_once_complete(tmp_path: Path) -> None:
    from pipeline.jobs import job_workdir

    root, names = tmp_path / "job", [f"{number}.py" for number in range(40)]

    def unpack() -> None:
        for _ in range(2):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            for name in names:
                (root / name).write_text(name)
                time.sleep(0.02)

    root.mkdir()
    thread = threading.Thread(target=unpack)
    thread.start()
    copy = Path(job_workdir._copy_settled(root))
    thread.join()
    assert sorted(path.name for path in copy.iterdir()) == sorted(names)
    shutil.rmtree(copy)
