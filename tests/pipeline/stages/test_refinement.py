"""Stages of tasks vq and refinement in the graph of a run, and what their config refuses."""

from __future__ import annotations

from typing import Any

import pytest

from dataprep.io.errors import UserError
from dataprep.io.yaml_text import parse_yaml
from pipeline.config import RunConfig
from pipeline.config_loading import validate_config
from pipeline.stages.graph import list_stages, stage_type
from tests.helpers.paths import ROOT
from train.models.refiner.config import RefinerConfig

SMOKE = (ROOT / "configs/smoke.yaml").read_text()


def make_config(vq: dict[str, Any] | None = None, **refinement: Any) -> RunConfig:
    """Returns the smoke config with a refinement stage in place of its first super-resolution stage."""
    tree: dict[str, Any] = parse_yaml(SMOKE, "smoke")
    common = {"resolution": 32, "steps": 4, "batch_size": 4, "warmup_steps": 1}
    train = {"base": tree["train"]["base"], "vq32": common | {"task": "vq", "model": "vq-micro"} | (vq or {})}
    stage = {"task": "refinement", "low_resolution": 16, "model": "refiner-micro", "autoencoder": "vq32"}
    tree["train"] = train | {"sr32": common | stage | refinement, "sr64": tree["train"]["sr64"]}
    return validate_config(tree)


def test_a_refinement_stage_waits_for_its_autoencoder_alone() -> None:
    stages = {stage.name: stage for stage in list_stages(make_config())}
    assert stages["train.vq32"].inputs == ("pack",)
    assert stages["train.sr32"].inputs == ("pack", "embed", "train.vq32")
    assert stages["train.sr64"].inputs == ("pack", "embed")
    assert {"train.base", "train.vq32", "train.sr32", "train.sr64"} <= set(stages["sample"].inputs)
    kind = stage_type("train.vq32")
    assert kind is not None and kind.kind == "train"


def test_the_cascade_is_without_the_autoencoder() -> None:
    config = make_config()
    assert list(config.train) == ["base", "vq32", "sr32", "sr64"] and list(config.cascade()) == ["base", "sr32", "sr64"]
    layout = config.cascade()["sr32"].denoiser_config(32)
    assert isinstance(layout, RefinerConfig) and layout.autoencoder.codes == 16
    assert validate_config(config.model_dump(mode="json")) == config


def test_the_layout_of_the_autoencoder_is_part_of_the_stage() -> None:
    ours, theirs = make_config(), make_config({"model_overrides": {"codes": 5}})
    assert ours.train["sr32"] != theirs.train["sr32"] and ours.train["base"] == theirs.train["base"]


@pytest.mark.parametrize(
    ("vq", "refinement", "words"),
    [
        (
            {},
            {"autoencoder": "vq64"},
            "train: sr32.autoencoder=vq64 is no entry of `train` with task: vq; take one of vq32",
        ),
        ({"resolution": 16}, {}, "sr32.autoencoder=vq32 is trained at resolution 16; train one at 32"),
        ({"resolution": 48}, {"autoencoder": "base"}, "autoencoder=base is no entry"),
        ({"stepz": 1}, {}, "train.vq32.stepz=1: unknown key; did you mean steps?"),
        (
            {"task": "vg"},
            {},
            "train.vq32: task=vg is unknown; take one of diffusion, distillation, prior, vq, refinement",
        ),
        ({"batch_size": 6}, {"autoencoder": "vq32", "batch_size": 5}, None),
    ],
)
def test_what_does_not_fit_is_one_line(vq: dict[str, Any], refinement: dict[str, Any], words: str | None) -> None:
    if words is None:
        make_config(vq, **refinement)
        return
    with pytest.raises(UserError) as caught:
        make_config(vq, **refinement)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_pack_has_to_serve_the_autoencoder() -> None:
    tree: dict[str, Any] = parse_yaml(SMOKE, "smoke")
    tree["train"]["vq48"] = {"task": "vq", "resolution": 48, "model": "vq-micro"}
    with pytest.raises(UserError, match=r"train\.vq48 needs 48; add it"):
        validate_config(tree)


def test_samples_are_not_taken_from_an_autoencoder() -> None:
    tree: dict[str, Any] = parse_yaml(SMOKE, "smoke")
    tree["train"]["vq32"] = {"task": "vq", "resolution": 32, "model": "vq-micro"}
    tree["sample"]["evaluate_at"] = "vq32"
    with pytest.raises(UserError, match=r"no cascade stage 'vq32'; the stages are base, sr32, sr64"):
        validate_config(tree)
