"""Modules of the user's with the names of our packages, in the folder where a command or script starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.runtime import own_code
from pipeline.runtime.own_code import ROOT, hide_shadowing_paths, list_shadowing_paths, python_command

NAMES = ("train.py", "eval.py", "pipeline.py", "dataprep/notes.txt")


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with one such module; importing it fails."""
    path = tmp_path / request.param
    path.parent.mkdir(exist_ok=True)
    path.write_text("raise SystemExit('the user\\'s own module was imported')\n")
    return tmp_path


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(words, cwd=folder, env=env, capture_output=True, text=True, check=False)


def test_the_command_starts_in_such_a_folder(folder: Path) -> None:
    done = run(python_command("schema"), folder)  # which imports from each of our packages
    assert done.returncode == 0, done.stderr


def test_only_folders_with_our_names_are_hidden(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "training.py").touch()
    assert list_shadowing_paths([str(folder), str(other), str(ROOT)]) == [str(folder)]
    monkeypatch.setattr(sys, "path", [str(folder), str(ROOT), str(other)])
    hide_shadowing_paths()
    assert sys.path == [str(ROOT), str(other)]


def test_a_script_beside_such_a_module_is_told(folder: Path) -> None:
    (folder / "script.py").write_text(
        f"import sys; sys.path.append({str(ROOT)!r})\nimport imagen_ray\nprint(imagen_ray.load_config)\n"
    )
    done = run([sys.executable, "script.py"], folder)
    if (folder / "pipeline.py").exists():  # found before ours can check anything
        assert "the user's own module was imported" in done.stderr
    elif (folder / "dataprep").exists():  # a folder without __init__.py does not hide a package further back
        assert done.returncode == 0, done.stderr
    else:
        assert "in place of imagen-ray's package of that name" in done.stderr
        assert str(folder) in done.stderr


def test_workers_do_not_search_the_drivers_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert str(folder) in own_code.list_worker_shadows()
