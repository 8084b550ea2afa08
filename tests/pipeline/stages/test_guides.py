"""``sample.guides``: what planning finds, what it refuses, and that the weights count."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
from pipeline.execution.plan import plan_run
from pipeline.stages.guides import find_guides, list_guide_files
from pipeline.store.run import Run
from tests.helpers.paths import ROOT
from tests.helpers.trained_runs import write_trained_run
from tests.helpers.unets import unet_config

SMOKE = str(ROOT / "configs" / "smoke.yaml")


@pytest.fixture
def weak(tmp_path: Path) -> Run:
    """A run with another base."""
    return write_trained_run(tmp_path / "weak", base=unet_config("micro-base", text_dim=32, channels=24))


def fingerprint(tmp_path: Path, *overrides: str) -> str:
    """Returns the fingerprint of the sample stage of the smoke config."""
    config = load_config(SMOKE, list(overrides))
    plan = plan_run(config, Run(str(tmp_path / "new")))
    return next(item.fingerprint for item in plan if item.stage.name == "sample")


def test_a_guide_is_found_and_its_bytes_count(weak: Run, tmp_path: Path) -> None:
    folder = find_guides({"base": weak.root})["base"]
    assert folder.endswith("export") and "train.base" in folder
    asked = f"sample.guides.base={weak.root}"
    files = list_guide_files(load_config(SMOKE, [asked]))
    assert {Path(path).name for path in files} == {"config.json", "model.safetensors"}
    first, plain = fingerprint(tmp_path, asked), fingerprint(tmp_path)
    weights = load_file(f"{folder}/model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, f"{folder}/model.safetensors")
    assert len({first, plain, fingerprint(tmp_path, asked)}) == 3


def test_what_is_no_network_of_the_stage_is_refused(weak: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sample\.guides\.base=.*nowhere: nothing is there"):
        find_guides({"base": str(tmp_path / "nowhere")})
    folder = find_guides({"base": weak.root})["base"]
    shutil.copyfile(f"{folder}/model.safetensors", tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match=r"sample\.guides\.base=.*alone\.safetensors: no exported stage"):
        find_guides({"base": str(tmp_path / "alone.safetensors")})
    config = load_config(SMOKE, [f"sample.guides.base={weak.root}", "train.base.diffusion.prediction=eps"])
    with pytest.raises(UserError, match=r"has diffusion\.prediction v, the stage eps; name a network of the same"):
        list_guide_files(config)
    with pytest.raises(UserError, match="there is no cascade stage 'sr9'"):
        load_config(SMOKE, [f"sample.guides.sr9={weak.root}"])
