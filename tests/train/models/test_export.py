"""Exported stages: round trip, reproducible bytes, refusal of broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dataprep.io.errors import UserError
from tests.helpers.cascades import BASE, SR, trained
from train.models.export import CONFIG_FILE, WEIGHTS_FILE, load_stage, read_stage_settings, save_stage
from train.models.unet.unet import UNet


def test_stage_round_trip(tmp_path: Path) -> None:
    model = trained(BASE)
    save_stage(tmp_path, {k: v.bfloat16() for k, v in model.state_dict().items()}, BASE, {"a": 1}, 3)
    loaded, settings = load_stage(tmp_path)
    weight = loaded.state_dict()["out.weight"]
    assert loaded.config == BASE and settings["diffusion"] == {"a": 1} and settings["trained_steps"] == 3
    assert isinstance(loaded, UNet) and not loaded.training and weight.dtype == torch.float32
    torch.testing.assert_close(weight, model.out.weight, atol=1e-2, rtol=1e-2)


def test_bytes_are_a_function_of_the_weights(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_stage(tmp_path / name, trained(BASE), BASE, {}, 1)
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_untrained_and_broken_stages_are_refused(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            load_stage(tmp_path)

    refused("config.json is missing; train this stage first")
    save_stage(tmp_path, UNet(BASE), BASE, {}, 10)
    refused("was never trained")
    save_stage(tmp_path, trained(BASE), BASE, {}, 0)
    refused("was never trained")
    broken = trained(BASE)
    with torch.no_grad():
        broken.stem.weight[0] = float("nan")
    save_stage(tmp_path, broken, BASE, {}, 10)
    refused(r"1 tensors are not finite \(first: stem.weight\)")
    save_stage(tmp_path, trained(SR), BASE, {}, 10)
    refused("do not match")
    save_stage(tmp_path, trained(BASE), BASE, {}, 10)
    (tmp_path / WEIGHTS_FILE).write_bytes(b"torn")
    refused("not a safetensors file")
    (tmp_path / WEIGHTS_FILE).unlink()
    refused("model.safetensors is missing")
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    save_stage(tmp_path, trained(BASE), BASE, {}, 10)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings | {"format": 9}))
    refused("format 9, this imagen-ray reads 2")


def test_the_config_names_the_backbone(tmp_path: Path) -> None:
    save_stage(tmp_path, trained(BASE), BASE, {}, 1)
    settings = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert settings["backbone"] == "unet" and settings["model"] == BASE.model_dump(mode="json")
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings | {"backbone": "mlp"}))
    with pytest.raises(UserError, match="backbone 'mlp' is unknown; take one of unet"):
        load_stage(tmp_path)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(settings | {"model": {"chanels": 3}}))
    with pytest.raises(UserError, match=r"config.json: invalid .*chanels"):
        load_stage(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda settings: "[1, 2]", "no mapping"),
        (lambda settings: '{"format": 2', "Expecting"),
        (lambda settings: json.dumps({k: v for k, v in settings.items() if k != "diffusion"}), "'diffusion'"),
        (lambda settings: json.dumps({k: v for k, v in settings.items() if k != "trained_steps"}), "'trained_steps'"),
        (lambda settings: json.dumps(settings | {"diffusion": 3}), "diffusion has to be a mapping"),
        (lambda settings: json.dumps(settings | {"trained_steps": "3"}), "trained_steps a number or null"),
    ],
)
def test_invalid_settings_are_refused(tmp_path: Path, change: Callable[[dict[str, object]], str], message: str) -> None:
    save_stage(tmp_path, trained(BASE), BASE, {}, 1)
    path = tmp_path / CONFIG_FILE
    path.write_text(change(json.loads(path.read_text())))
    for read in (read_stage_settings, load_stage):
        with pytest.raises(UserError, match=rf"config\.json: invalid \(.*{message}.*\); export again"):
            read(tmp_path)
