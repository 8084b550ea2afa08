"""A forget that is killed in the middle."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dataprep.io import storage
from pipeline.lineage.forget import forget_samples
from pipeline.store.run import Run, verify_outputs
from tests.helpers.runs import Made
from tests.helpers.secret_search import find_secrets, list_secrets


class KilledError(BaseException):
    """A kill: nothing catches it or cleans up."""


@pytest.fixture(scope="module")
def expected(left_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run as a forget leaves it that nobody kills."""
    folder = tmp_path_factory.mktemp("expected") / "run"
    shutil.copytree(left_run, folder)
    forget_samples(str(folder), ["000010002"])
    return folder


@pytest.mark.parametrize("after", [0, 1, 2, 5, 9, 14, 20, 25])
def test_the_same_command_completes_after_a_kill(
    finished_run: Made, run: Path, expected: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed at a write (the list, a shard, a manifest, a page), then run again; a key is blank by then."""
    left = [after]

    def limit_calls(real: Any) -> Any:
        def write(*arguments: Any) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KilledError
            real(*arguments)

        return write

    with monkeypatch.context() as patched:
        for name in ("write_bytes", "publish", "remove"):
            patched.setattr(storage, name, limit_calls(getattr(storage, name)))
        with pytest.raises(KilledError):
            forget_samples(str(run), ["000010002"])
    assert (run / "forgotten.json").exists() == (after > 0)
    forget_samples(str(run), [] if after % 2 else ["000010002"])
    assert find_secrets(run, list_secrets(finished_run)) == set()
    assert [problem for _, _, problems in verify_outputs(Run(str(run))) for problem in problems] == []
    for path in sorted(item for item in expected.rglob("*") if item.is_file()):
        other = run / path.relative_to(expected)
        if path.suffix in (".parquet", ".tar", ".md") or path.name in ("forgotten.json", "manifest.json"):
            assert other.read_bytes() == path.read_bytes(), path
