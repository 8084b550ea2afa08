"""The driver of a Ray job runs from a copy of the job's files.

Ray unpacks them once a node; where two nodes share a machine the second one deletes the folder and unpacks it again,
under the driver that runs in it. Modules not imported yet are then missing for a moment, the working folder for good.
"""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

MARK = "IMAGEN_RAY_OWN_COPY"  # the copy, once this process runs from it
JOB_SETTINGS = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the entry point of a job
TRIES, SETTLED = 60, 0.3  # looks at the folder, and the seconds between two that must show the same


def run_from_own_copy(words: Sequence[str]) -> None:
    """Begins this process again, with the same ``words``, from a copy of its folder; outside of a job does nothing.

    A package that is installed on the node, as in an image of one's own, stays where it is.
    """
    root = Path(__file__).resolve().parent.parent
    if JOB_SETTINGS not in os.environ or not _runs_in(root):
        return
    if copy := os.environ.get(MARK):
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        return
    os.environ[MARK] = _copy(root)
    os.chdir(os.environ[MARK])
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *words])


def _runs_in(root: Path) -> bool:
    try:
        return Path.cwd() == root
    except FileNotFoundError:  # it is being unpacked again already
        return True


def _copy(root: Path) -> str:
    """A copy of ``root`` as it is when nobody is at work on it; RuntimeError where that never is."""
    for _ in range(TRIES):
        before, folder = _sizes(root), tempfile.mkdtemp(prefix="imagen-ray-job-")
        with suppress(OSError):  # files that vanish on the way: the comparison tells
            shutil.copytree(root, folder, dirs_exist_ok=True)
        time.sleep(SETTLED)
        if before and before == _sizes(root) == _sizes(Path(folder)):
            return folder
        shutil.rmtree(folder)
    raise RuntimeError(f"{root}: the job's files keep changing")


def _sizes(folder: Path) -> dict[str, int]:
    """Path -> size of what is in ``folder``; less than that where it changes meanwhile."""
    found = {}
    with suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            found[str(path.relative_to(folder))] = path.stat().st_size if path.is_file() else 0
    return found
