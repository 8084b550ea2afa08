"""Reading checkpoints: what is read from where, and what is raised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dataprep.io.errors import UserError
from tests.helpers import counted_store
from tests.helpers.toys import run
from train import resume
from train.resume import open_newest, read_weights


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def test_weights_are_read_in_one_pass(finished: Path) -> None:
    """The hash of a remote file is that of the copy which is then read."""
    newest = finished / "checkpoints/step-00000020"
    counted_store.reset()
    weights, updates = read_weights(f"counted://{finished}/checkpoints", "ema")
    assert updates == 20
    read = {Path(path).name: size for path, size in counted_store.READ.items() if size}
    assert read == {path.name: path.stat().st_size for path in newest.iterdir()}
    exported = load_file(finished / "export/weights.safetensors")
    assert all(torch.equal(weights[name], exported[name]) for name in exported)
    raw, _ = read_weights(str(finished / "checkpoints"), "raw")
    assert raw.keys() == weights.keys() and not torch.equal(raw["0.weight"], weights["0.weight"])


def test_a_local_checkpoint_is_read_where_it_is(finished: Path) -> None:
    with open_newest(str(finished / "checkpoints"), together=False) as found:
        assert found is not None
        assert {Path(path).parent for path in found.local.values()} == {finished / "checkpoints/step-00000020"}


def test_copies_are_deleted(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_newest(f"counted://{finished}/checkpoints", together=False) as found:
        assert found is not None and list(tmp_path.glob("*/rank-00000.safetensors"))
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_read_now_is_not_torn(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older checkpoint must not be taken because the storage fails for a while."""

    def fail(path: str) -> tuple[str, int]:
        raise TimeoutError("no answer")

    monkeypatch.setattr(resume.storage, "sha256_file", fail)
    with pytest.raises(OSError, match=r"step-00000020: .* cannot be read \(TimeoutError: no answer\)"):
        resume.find_newest(str(finished / "checkpoints"))


def test_without_a_checkpoint_there_are_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole checkpoint is left to read raw weights from; train again"):
        read_weights(str(tmp_path), "raw")
