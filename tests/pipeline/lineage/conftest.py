"""A run whose samples are forgotten."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dataprep.io import storage
from pipeline.store.artifact import describe_file
from pipeline.store.run import Run
from tests.helpers.runs import VICTIM, Made, picture, url


@pytest.fixture(scope="session")
def left_run(finished_run: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished run with leftovers of kills: unfinished stages, a temporary file, a URL in the log. Read only."""
    folder = tmp_path_factory.mktemp("left") / "run"
    shutil.copytree(finished_run.run.root, folder)
    unfinished = folder / "stages" / "annotate" / "unfinished"
    shutil.copytree(folder / "stages" / "annotate" / "annotateone", unfinished)
    (unfinished / "manifest.json").unlink()
    (unfinished / ".shards").mkdir()
    (unfinished / ".shards" / "00001.json").write_text("{}")
    (unfinished / ".shards" / "batch-00000500.json").write_text('[{"id": 1}]')
    (folder / "stages" / "train.base" / "unfinished").mkdir()
    (folder / "stages" / "train.base" / "unfinished" / "log.jsonl").write_text("{}\n")
    _write_tensorboard_image(folder / "stages" / "train.base" / "trainbaseone")
    (folder / "stages" / "download" / "downloadone" / ".00001.tar.ab12cd34.tmp").write_bytes(picture(VICTIM))
    Run(str(folder)).event("quarantined", stage="download", reason=f"could not read {url(VICTIM)}: torn")
    return folder


@pytest.fixture
def run(left_run: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(left_run, tmp_path / "run")
    return tmp_path / "run"


def _write_tensorboard_image(folder: Path) -> None:
    """Adds a TensorBoard file like that of a training stage that shows true images beside samples."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder / "tensorboard")) as writer:
        writer.add_image("samples", np.zeros((8, 8, 3), np.uint8), 1, dataformats="HWC")
    run = Run(str(folder.parents[2]))
    artifact = run.artifact("train.base", folder.name)
    assert artifact is not None
    names = [name for name in storage.list_files(str(folder)) if name != "manifest.json"]
    run.commit(replace(artifact.manifest, outputs=[describe_file(str(folder), name) for name in names]))
