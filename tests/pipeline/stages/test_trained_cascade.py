"""From a run to a cascade: a distilled stage is sampled as it was distilled, a fitted one at its levels."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io import storage
from dataprep.io.errors import UserError
from eval.sampling.config import SamplingConfig
from pipeline.stages.schedule import FITTED, place_levels
from pipeline.stages.trained_cascade import find_cascade, list_cascade_files, trained_cascade
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.run import Run
from tests.helpers.cascades import BASE, trained
from tests.helpers.runs import smoke_configs
from tests.helpers.trained_runs import commit_stage, write_trained_run
from train.models.distilled import Distilled
from train.models.export import save_stage

SAMPLING = {"sampler": "ddim", "steps": 2, "log_snrs": [-20.0, -1.0], "guidance": 1.0, "threshold": "none"}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with an encoder, and a base that is distilled."""
    made = write_trained_run(tmp_path / "run")
    folder = Path(made.stage_folder("train.base", "b" * 20))
    save_stage(folder / "export", trained(BASE), BASE, {}, 5, distilled=Distilled("digest", 2.0, SAMPLING))
    commit_stage(made, "train.base", "b" * 20)
    return made


def artifacts(run: Run) -> dict[str, Artifact]:
    found = run.artifacts()
    config = smoke_configs()["train.base"].to_json()
    base = found["train.base"]
    return found | {"train.base": Artifact(base.folder, Manifest("train.base", "b", {}, config, [], {}, 1.0, {}))}


def test_a_distilled_stage_brings_its_steps(run: Run) -> None:
    found = artifacts(run)
    given = {"base": SamplingConfig(steps=9, guidance=3.0, lowres_level=0.3)}
    (stage,) = trained_cascade({"base": found["train.base"]}, given, found["encoder"], None).stages
    assert stage.sampling.log_snrs == (-20.0, -1.0) and stage.sampling.count_evaluations() == 2
    assert (stage.sampling.guidance, stage.sampling.threshold, stage.sampling.lowres_level) == (1.0, "none", 0.3)
    assert set(SAMPLING) < set(stage.distilled)


def test_fitted_levels_take_the_place_of_steps(tmp_path: Path) -> None:
    fitted = Artifact(str(tmp_path), Manifest("schedule", "f", {}, {}, [], {}, 1.0, {}))
    storage.write_json(fitted.path(FITTED), {"sr": {"log_snrs": [-20.0, 0.5], "cost": 1.0, "cost_of_even_steps": 2.0}})
    given = {"base": SamplingConfig(steps=3), "sr": SamplingConfig(steps=2, guidance=1.0)}
    placed = place_levels(given, fitted)
    assert placed["base"] == given["base"] and placed["sr"].guidance == 1.0
    assert placed["sr"].log_snrs == (-20.0, 0.5) and place_levels(given, None) == given


def test_a_weaker_network_is_found_and_its_files_are_listed(run: Run, tmp_path: Path) -> None:
    found = artifacts(run)
    weak = write_trained_run(tmp_path / "weak", base=BASE)
    cascade = trained_cascade({"base": found["train.base"]}, {}, found["encoder"], None, {"base": weak.root})
    assert cascade.stages[0].guide == weak.artifacts()["train.base"].path("export")
    folders = {Path(path).parent for path in list_cascade_files(cascade)}
    assert Path(str(cascade.stages[0].guide)) in folders and Path(cascade.stages[0].path) in folders


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"subject\.model=.*: neither a run nor an exported folder"):
        find_cascade(str(tmp_path), "subject.model")
