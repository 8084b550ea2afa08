"""Two made-up runs for comparisons."""

from __future__ import annotations

from pathlib import Path

import pytest

from eval.sampling.prompts import EvalPrompt
from pipeline.cli import main
from pipeline.compare.runs import ComparedRun, load_compared_run
from tests.helpers.judged import make_run

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>"


def make_runs(folder: Path) -> tuple[Path, Path]:
    """A is right six times of ten, B nearly always, with another guidance."""
    more = [EvalPrompt(HOSTILE, "user", "en", None)]
    make_run(folder / "a", 0.6, guidance=1.0, more=more)
    make_run(folder / "b", 1.0, guidance=4.0, more=more)
    return folder / "a", folder / "b"


def load_both(runs: tuple[Path, Path]) -> tuple[ComparedRun, ComparedRun]:
    a, b = runs
    return load_compared_run(str(a)), load_compared_run(str(b))


def run_compare(*words: str) -> int:
    """Exit status of `imagen-ray compare`."""
    with pytest.raises(SystemExit) as ended:
        main.main(["compare", *words])
    return int(ended.value.code or 0)
