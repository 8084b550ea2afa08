"""A cascade with a prior, the whole way on the smoke config: run, report, export, variations and interpolations."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.paths import ROOT
from tests.helpers.priors import WITH_PRIOR

pytestmark = pytest.mark.slow


def command(*words: str) -> str:
    """Runs the command in a process of its own; returns what it printed."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *words], cwd=ROOT, text=True, capture_output=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dalle2")
    more = [
        "train.base.text_drop=0.5",
        "sample.stages.prior={steps: 2, guidance: 2.0}",
        "evaluate.likelihood={images: 4, steps: 0}",
    ]
    command("run", "configs/smoke.yaml", f"run={folder / 'run'}", *WITH_PRIOR, *more)
    return folder / "run"


def test_the_run_has_every_stage_and_a_report(run: Path) -> None:
    stages = json.loads((run / "run.json").read_text())["stages"]
    assert stages["train.prior"]["state"] == "done" and list(stages).index("train.prior") < list(stages).index("sample")
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["composition"]["seen"]["colour"] <= 1
    judged = {name.partition(":")[0] for name in metrics["more"]["likelihood"]["values"]}
    assert judged == {"base", "sr32", "sr64"}  # the prior makes no images
    assert "train.prior" in (run / "report.html").read_text()
    command("verify", str(run))


def test_a_prompt_an_image_and_the_way_between_two(run: Path, tmp_path: Path) -> None:
    command("sample", str(run), "a red circle", "--seed", "1", "--out", str(tmp_path / "one.png"))
    command(
        *("sample", str(run), "--variations-of", str(tmp_path / "one.png"), "--num", "3"),
        *("--out", str(tmp_path / "same.png")),
    )
    images = [np.asarray(Image.open(tmp_path / f"same-00{number}.png")) for number in range(3)]
    assert images[0].shape == (64, 64, 3) and not np.array_equal(images[0], images[1])
    out = command(
        *("sample", str(run), "--variations-of", str(tmp_path / "one.png"), "--num", "4", "--stage", "base"),
        *("--to-prompt", "three blue squares", "--out", str(tmp_path / "way.png"), "--json"),
    )
    described = json.loads(out)["images"]
    assert len(described) == 4 and described[0]["to_prompt"] == "three blue squares"


def test_an_export_samples_the_same(run: Path, tmp_path: Path) -> None:
    command("sample", str(run), "a red circle", "--seed", "1", "--out", str(tmp_path / "one.png"))
    command("export", str(run), str(tmp_path / "export"))
    command("sample", str(tmp_path / "export"), "a red circle", "--seed", "1", "--out", str(tmp_path / "two.png"))
    one, two = (np.asarray(Image.open(tmp_path / name)) for name in ("one.png", "two.png"))
    assert np.array_equal(one, two)
    card = (tmp_path / "export/README.md").read_text()
    assert "| prior | caption | CLIP embedding |" in card and "whose embeddings are predicted" in card
