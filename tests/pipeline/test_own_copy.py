"""A job's driver runs from files that nobody takes away from under it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.own_copy import JOB_SETTINGS, MARK

ROOT = Path(__file__).resolve().parents[2]
# Says where it runs from.
PROBE = """
import json, os, sys
from pipeline.own_copy import run_from_own_copy
run_from_own_copy(["again"])
print(json.dumps({"folder": os.getcwd(), "words": sys.argv[1:], "code": __file__}))
"""


def start(folder: Path, **env: str) -> dict:
    """Runs a package ``pipeline`` in ``folder`` as a job's entry point runs it."""
    (folder / "pipeline").mkdir(parents=True)
    (folder / "pipeline" / "__init__.py").touch()
    (folder / "pipeline" / "__main__.py").write_text(PROBE)
    shutil.copy(ROOT / "pipeline" / "own_copy.py", folder / "pipeline")
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", MARK, JOB_SETTINGS)}
    words = [sys.executable, "-m", "pipeline", "first"]
    done = subprocess.run(words, cwd=folder, env=clean | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_job_runs_from_a_copy_that_goes_with_it(tmp_path: Path) -> None:
    told = start(tmp_path / "job", **{JOB_SETTINGS: "{}", "TMPDIR": str(tmp_path)})
    assert told["words"] == ["again"]
    assert Path(told["folder"]).parent == tmp_path and Path(told["folder"]) != tmp_path / "job"
    assert told["code"].startswith(told["folder"])
    assert not Path(told["folder"]).exists() and (tmp_path / "job" / "pipeline").exists()


@pytest.mark.parametrize("where", ["no job", "installed"])
def test_elsewhere_nothing_is_copied(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == "no job":
        told = start(tmp_path / "here")
        assert told["words"] == ["first"] and told["folder"] == str(tmp_path / "here")
        return
    from pipeline import own_copy

    monkeypatch.setenv(JOB_SETTINGS, "{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_copy.os, "execv", lambda *_: pytest.fail("begun again"))
    own_copy.run_from_own_copy(["run"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_being_unpacked_is_copied_once_it_is_whole(tmp_path: Path) -> None:
    from pipeline import own_copy

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
    copy = Path(own_copy._copy(root))
    thread.join()
    assert sorted(path.name for path in copy.iterdir()) == sorted(names)
    shutil.rmtree(copy)
