"""Re-executes the driver of a Ray job from a copy of the job's working directory.

Ray unpacks the working directory once per node. If two nodes share a host, the second one deletes the folder and
unpacks it again under the running driver: modules that are not imported yet are missing for a moment, the current
folder for good.
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

from pipeline.store.driver import JOB_SETTINGS

COPY_VARIABLE = "IMAGEN_RAY_OWN_COPY"  # environment variable: the copy that this process runs from
ATTEMPTS, SETTLE_SECONDS = 60, 0.3  # the folder must look the same twice, this far apart


def rerun_from_copy(words: Sequence[str]) -> None:
    """Replaces this process by ``python -m pipeline WORDS`` in a copy of its folder; outside of a job does nothing.

    A package that is installed on the node, as in a custom image, stays where it is.
    """
    root = Path(__file__).resolve().parents[2]
    if JOB_SETTINGS not in os.environ or not _runs_in(root):
        return
    if copy := os.environ.get(COPY_VARIABLE):
        atexit.register(shutil.rmtree, copy, ignore_errors=True)
        return
    os.environ[COPY_VARIABLE] = _copy_settled(root)
    os.chdir(os.environ[COPY_VARIABLE])
    os.execv(sys.executable, [sys.executable, "-m", "pipeline", *words])


def _runs_in(root: Path) -> bool:
    try:
        return Path.cwd() == root
    except FileNotFoundError:  # it is being unpacked again already
        return True


def _copy_settled(root: Path) -> str:
    """Returns a copy of ``root`` taken while nobody changed it; RuntimeError if it keeps changing."""
    for _ in range(ATTEMPTS):
        before, folder = _list_sizes(root), tempfile.mkdtemp(prefix="imagen-ray-job-")
        with suppress(OSError):  # files may vanish meanwhile; the comparison below detects it
            shutil.copytree(root, folder, dirs_exist_ok=True)
        time.sleep(SETTLE_SECONDS)
        if before and before == _list_sizes(root) == _list_sizes(Path(folder)):
            return folder
        shutil.rmtree(folder)
    raise RuntimeError(f"{root}: the job's files keep changing")


def _list_sizes(folder: Path) -> dict[str, int]:
    """Returns path -> size of the files in ``folder``; incomplete if it changes meanwhile."""
    found = {}
    with suppress(FileNotFoundError):
        for path in folder.rglob("*"):
            found[str(path.relative_to(folder))] = path.stat().st_size if path.is_file() else 0
    return found
