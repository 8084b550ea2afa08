"""The U-Net: shapes of every layout, conditioning, padding, null text, presets, config errors."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError

from tests.helpers.unets import build_awake, make_inputs, predict, unet_config
from train.models.backbones import count_parameters
from train.models.unet.attention import ImageAttention
from train.models.unet.config import UNetConfig
from train.models.unet.presets import IMAGEN, MICRO, PRESETS, SMALL, TINY
from train.models.unet.unet import Stack, UNet
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig


@pytest.mark.parametrize("name", sorted(TINY | MICRO))
def test_preset_runs_and_starts_at_zero(name: str) -> None:
    config = PRESETS[name]
    model = UNet(config)
    given = make_inputs(config)
    output = predict(model, given)
    assert output.shape == (2, 3, 16, 16)
    assert torch.equal(output, given["lowres_BCHW"] if config.lowres_residual else torch.zeros_like(output))
    predict(build_awake(config), make_inputs(config))


@pytest.mark.parametrize("change", [{}, {"combine": "level"}])
@pytest.mark.parametrize("name", sorted(TINY | MICRO))
def test_every_parameter_gets_a_gradient(name: str, change: dict[str, str]) -> None:
    config = unet_config(name, **change)
    model = build_awake(config).requires_grad_(True)
    mixed = make_inputs(config) | {"text_keep_B": torch.tensor([True, False])}
    predict(model, mixed).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# What docs/models.md says, in millions, and the paper's own figure.
COUNTS = {
    "imagen-base-2b": (2063.0, 2000),
    "imagen-base-300m": (301.0, 300),
    "imagen-sr256-600m": (573.5, 600),
    "imagen-sr1024-400m": (436.9, 400),
    "small-base": (17.5, None),
    "small-sr256": (16.9, None),
    "small-sr1024": (16.6, None),
}


@pytest.mark.parametrize("name", sorted(IMAGEN | SMALL))
def test_parameter_counts(name: str) -> None:
    stated, paper = COUNTS[name]
    millions = count_parameters(PRESETS[name]) / 1e6
    assert millions == pytest.approx(stated, abs=0.06)
    assert paper is None or abs(millions / paper - 1) <= 0.1


def test_tiny_parameter_counts() -> None:
    assert all(count_parameters(config) < 3_200_000 for config in TINY.values())
    assert all(count_parameters(config) < 150_000 for config in MICRO.values())


def test_paper_presets_to_the_letter() -> None:
    with torch.device("meta"):
        names = ("imagen-base-2b", "imagen-sr256-600m", "imagen-sr1024-400m")
        base, sr256, sr1024 = (UNet(IMAGEN[name]) for name in names)
    heads = {layer.query.in_features: layer.heads for layer in attentions(base)}
    assert heads == {1024: 16, 1536: 24, 2048: 32}  # 64 channels a head
    assert [count_blocks(levels[0]) for levels in (base.down, base.up)] == [3, 4]
    assert {(layer.heads, layer.kind) for layer in attentions(sr256)} == {(8, "joint")}
    assert {(layer.heads, layer.kind) for layer in attentions(sr1024)} == {(8, "cross")}
    assert all(layer.image_keys_values is None for layer in attentions(sr1024))
    for model in (sr256, sr1024):
        assert [count_blocks(stack) for stack in model.down] == [2, 4, 8, 8]
        assert [layer.get_submodule("conv").stride for layer in model.shrink] == [(2, 2)] * 4


X0 = {"prediction": "x0", "lowres_max_level": 0.3}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("imagen-base-2b", {"resolution": 64}),
        ("imagen-base-300m", {"resolution": 64}),
        ("imagen-sr256-600m", {"resolution": 256, "low_resolution": 64}),
        ("imagen-sr1024-400m", {"resolution": 1024, "low_resolution": 256, "crop": 256}),
        ("small-base", {"resolution": 64}),
        ("small-sr256", {"resolution": 256, "low_resolution": 64, "diffusion": X0}),
        ("small-sr1024", {"resolution": 1024, "low_resolution": 256, "crop": 256, "diffusion": X0}),
    ],
)
def test_presets_fit_their_stages(name: str, stage: dict[str, Any]) -> None:
    task = DiffusionTask(DiffusionStageConfig(model=name, **stage), text_dim=768)
    with torch.device("meta"):
        model = task.build()
    given = make_inputs(unet_config(name, text_dim=768), size=stage.get("crop", stage["resolution"]), device="meta")
    assert predict(model, given).shape == given["x_BCHW"].shape


def count_blocks(stack: torch.nn.Module) -> int:
    assert isinstance(stack, Stack)
    return len(stack.blocks)


def attentions(model: UNet) -> list[ImageAttention]:
    return [module for module in model.modules() if isinstance(module, ImageAttention)]


@pytest.mark.parametrize("order", ["base", "efficient"])
@pytest.mark.parametrize("strides", [(1, 2), (2, 2), (1, 1), (2, 4)])
@pytest.mark.parametrize("every", [True, False])
def test_layouts(order: Literal["base", "efficient"], strides: tuple[int, ...], every: bool) -> None:
    config = UNetConfig(
        order=order,
        channels=8,
        channel_mult=(1, 2),
        blocks=(1, 2),
        strides=strides,
        attention=("self", "cross"),
        attention_every_block=every,
        feed_forward=2,
        head_width=8,
        groups=4,
        text_dim=12,
        context_width=8,
        condition_width=16,
    )
    given = make_inputs(config)
    assert predict(build_awake(config), given).shape == given["x_BCHW"].shape
    # Not square, and another size than the one it might have been trained on.
    wide = given | {"x_BCHW": torch.randn(2, 3, 16, 32)}
    assert predict(build_awake(config), wide).shape == (2, 3, 16, 32)


@pytest.mark.parametrize("layers", [0, 2])
def test_padding_changes_nothing(layers: int) -> None:
    config = unet_config("micro-base", text_layers=layers)
    model, given = build_awake(config), make_inputs(config)
    padded = dict(given)
    padded["text_BLD"] = torch.cat([given["text_BLD"], torch.full((2, 3, 128), float("nan"))], dim=1)
    padded["text_mask_BL"] = torch.cat([given["text_mask_BL"], torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(predict(model, given), predict(model, padded), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("preset", "layers"), [("micro-base", 0), ("micro-base", 2), ("micro-sr", 0)])
def test_without_padding_no_mask_is_needed_and_attention_gets_none(
    preset: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = unet_config(preset, text_layers=layers)
    model, given = build_awake(config), make_inputs(config)
    masked = predict(model, given)
    given.pop("text_mask_BL")
    seen: list[object] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def noted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
        seen.append(attn_mask)
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
    torch.testing.assert_close(predict(model, given), masked)
    assert seen and all(mask is None for mask in seen)
    # A row without its caption sees the null token alone.
    dropped = predict(model, given | {"text_keep_B": torch.tensor([True, False])})
    torch.testing.assert_close(dropped[0], masked[0])
    assert not torch.allclose(dropped[1], masked[1])


def test_every_condition_changes_the_output() -> None:
    config = unet_config("micro-sr")
    model, given = build_awake(config), make_inputs(config)
    output = predict(model, given)
    for name in ("x_BCHW", "text_BLD", "lowres_BCHW"):
        assert not torch.allclose(predict(model, given | {name: given[name].flip(0)}), output)
    for name in ("log_snr_B", "lowres_log_snr_B"):
        assert not torch.allclose(predict(model, given | {name: given[name] - 4}), output)


def test_dropped_text_equals_no_text() -> None:
    config = unet_config("micro-base")
    model, given = build_awake(config), make_inputs(config)
    dropped = predict(model, given | {"text_keep_B": torch.tensor([True, False])})
    empty = predict(model, given | {"text_mask_BL": torch.zeros(2, 5, dtype=torch.bool)})
    torch.testing.assert_close(dropped[0], predict(model, given)[0])
    torch.testing.assert_close(dropped[1], empty[1])
    assert not torch.allclose(dropped[1], predict(model, given)[1])
    # Without a caption, what the caption was does not matter.
    other = predict(model, given | {"text_BLD": given["text_BLD"] + 1} | {"text_keep_B": torch.tensor([True, False])})
    torch.testing.assert_close(dropped[1], other[1])


def test_position_of_words_matters_with_text_layers() -> None:
    config = unet_config("micro-base", text_layers=1)
    model, given = build_awake(config), make_inputs(config)
    reversed_words = predict(model, given | {"text_BLD": given["text_BLD"].flip(1)})
    assert not torch.allclose(reversed_words, predict(model, given), atol=1e-6)


def test_rows_do_not_see_each_other() -> None:
    config = unet_config("micro-base")
    model, given = build_awake(config), make_inputs(config, batch=3)
    alone = predict(model, {name: value[1:2] for name, value in given.items()})
    torch.testing.assert_close(predict(model, given)[1:2], alone, atol=1e-5, rtol=1e-4)


def test_invalid_inputs_are_refused() -> None:
    base, sr = UNet(PRESETS["micro-base"]), UNet(PRESETS["micro-sr"])
    with pytest.raises(ValueError, match="multiples of 2"):
        predict(base, make_inputs(base.config, size=15))
    with pytest.raises(ValueError, match="takes no low-resolution"):
        predict(base, make_inputs(base.config) | {"lowres_BCHW": torch.zeros(2, 3, 16, 16)})
    given = make_inputs(sr.config)
    given.pop("lowres_BCHW")
    with pytest.raises(ValueError, match="needs lowres_BCHW"):
        predict(sr, given)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": (1,)}, "equally long"),
        ({"blocks": (1, 0)}, "above 0"),
        ({"strides": (1, 0)}, "above 0"),
        ({"channels": 25, "head_width": 7}, "do not split"),
        ({"lowres_residual": True}, "set lowres: true"),
        ({"context_width": 30}, "multiple of 4"),
        ({"chanels": 3}, "Extra inputs"),
    ],
)
def test_invalid_configs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        unet_config("micro-base", **change)


def test_config_round_trips_through_json() -> None:
    for config in PRESETS.values():
        assert UNetConfig(**config.model_dump(mode="json")) == config
