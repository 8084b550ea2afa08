"""The diffusion transformer: shapes of every layout, conditioning, padding, null text, presets, config errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.helpers.dits import build_awake_dit, dit_config
from tests.helpers.unets import make_inputs, predict
from train.models.backbones import count_parameters
from train.models.base import Conditions
from train.models.dit.config import DiTConfig
from train.models.dit.dit import DiT
from train.models.dit.presets import LARGE, MICRO, PRESETS, SMALL, TINY
from train.tasks.diffusion import DiffusionTask
from train.tasks.diffusion_config import DiffusionStageConfig


def inputs_of(config: DiTConfig, **options: Any) -> dict[str, Tensor]:
    """`make_inputs`, with an image embedding in one of two rows if the config has one."""
    given = make_inputs(config, size=options.pop("size", 2 * config.size_multiple()), **options)
    if config.image_embedding_dim:
        embedding = torch.randn(len(given["x_BCHW"]), config.image_embedding_dim)
        embedding[0] = 0
        given["image_embedding_BE"] = embedding
    return given


@pytest.mark.parametrize("name", sorted(TINY | MICRO))
def test_preset_runs_and_starts_at_zero(name: str) -> None:
    config = PRESETS[name]
    given = inputs_of(config)
    output = predict(DiT(config), given)
    assert output.shape == given["x_BCHW"].shape
    assert torch.equal(output, given["lowres_BCHW"] if config.lowres_residual else torch.zeros_like(output))
    assert predict(build_awake_dit(config), given).std() > 0.01


@pytest.mark.parametrize("name", sorted(TINY | MICRO))
@pytest.mark.parametrize("change", [{}, {"modulation": "shared", "image_embedding_dim": 6, "text_layers": 1}])
def test_every_parameter_gets_a_gradient(name: str, change: dict[str, Any]) -> None:
    config = dit_config(name, **change)
    model = build_awake_dit(config).requires_grad_(True)
    predict(model, inputs_of(config) | {"text_keep_B": torch.tensor([True, False])}).square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_after_one_update_every_parameter_gets_a_gradient_of_a_fresh_network() -> None:
    """Two zeros in a row, such as a gate and the layer before it, would never leave zero."""
    for name in MICRO:
        config = dit_config(name, image_embedding_dim=6)
        torch.manual_seed(0)
        model, given = DiT(config), inputs_of(config) | {"text_keep_B": torch.tensor([True, False])}
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(4):  # out, then gates and modulation, then what they gate
            optimizer.zero_grad()
            (predict(model, given) - 1).square().mean().backward()
            optimizer.step()
        assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


# What docs/models.md says, in millions.
COUNTS = {
    "dit-base-1b": 1058.5,
    "dit-base-300m": 309.9,
    "dit-256-1b": 1059.9,
    "dit-sr256-300m": 310.8,
    "dit-sr1024-300m": 342.9,
    "dit-small-base": 16.6,
}


@pytest.mark.parametrize("name", sorted(LARGE | SMALL))
def test_parameter_counts(name: str) -> None:
    assert count_parameters(PRESETS[name]) / 1e6 == pytest.approx(COUNTS[name], abs=0.06)


def test_tiny_parameter_counts() -> None:
    assert all(count_parameters(config) < 3_200_000 for config in TINY.values())
    assert all(count_parameters(config) < 150_000 for config in MICRO.values())


X0 = {"prediction": "x0", "lowres_max_level": 0.3}


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("dit-base-1b", {"resolution": 64}),
        ("dit-base-300m", {"resolution": 64}),
        ("dit-256-1b", {"resolution": 256}),
        ("dit-sr256-300m", {"resolution": 256, "low_resolution": 64}),
        ("dit-sr1024-300m", {"resolution": 1024, "low_resolution": 256, "crop": 256}),
        ("dit-small-base", {"resolution": 64}),
        ("dit-tiny-base", {"resolution": 16}),
        ("dit-tiny-sr64", {"resolution": 64, "low_resolution": 16, "diffusion": X0}),
        ("dit-tiny-sr256", {"resolution": 256, "low_resolution": 64, "crop": 64, "diffusion": X0}),
        ("dit-micro-sr", {"resolution": 64, "low_resolution": 32, "crop": 32, "diffusion": X0}),
    ],
)
def test_presets_fit_their_stages(name: str, stage: dict[str, Any]) -> None:
    task = DiffusionTask(DiffusionStageConfig(model=name, **stage), text_dim=768)
    with torch.device("meta"):
        model = task.build()
    size = stage.get("crop", stage["resolution"])
    given = make_inputs(dit_config(name, text_dim=768), size=size, device="meta")
    assert predict(model, given).shape == given["x_BCHW"].shape


@pytest.mark.parametrize("change", [{}, {"attention": "cross"}, {"attention": "cross", "window": 2}])
@pytest.mark.parametrize("bottleneck", [0, 5])
@pytest.mark.parametrize("modulation", ["block", "shared"])
def test_layouts(change: dict[str, Any], bottleneck: int, modulation: str) -> None:
    config = dit_config("dit-micro-base", positions=False, bottleneck=bottleneck, modulation=modulation, **change)
    model = build_awake_dit(config)
    for shape in ((2, 3, 16, 16), (2, 3, 16, 24)):  # an aspect bucket
        given = make_inputs(config) | {"x_BCHW": torch.randn(*shape)}
        assert predict(model, given).shape == shape


@pytest.mark.parametrize("change", [{}, {"attention": "cross"}, {"text_layers": 2}, {"image_embedding_dim": 6}])
def test_padding_changes_nothing(change: dict[str, Any]) -> None:
    config = dit_config("dit-micro-base", **change)
    model, given = build_awake_dit(config), inputs_of(config)
    padded = dict(given)
    padded["text_BLD"] = torch.cat([given["text_BLD"], torch.full((2, 3, 128), float("nan"))], dim=1)
    padded["text_mask_BL"] = torch.cat([given["text_mask_BL"], torch.zeros(2, 3, dtype=torch.bool)], dim=1)
    torch.testing.assert_close(predict(model, given), predict(model, padded), atol=1e-5, rtol=1e-4)


def test_every_condition_changes_the_output() -> None:
    config = dit_config("dit-micro-sr", image_embedding_dim=6)
    model, given = build_awake_dit(config), inputs_of(config)
    output = predict(model, given)
    for name in ("x_BCHW", "text_BLD", "lowres_BCHW", "image_embedding_BE"):
        assert not torch.allclose(predict(model, given | {name: given[name].flip(0)}), output)
    for name in ("log_snr_B", "lowres_log_snr_B"):
        assert not torch.allclose(predict(model, given | {name: given[name] - 4}), output)


@pytest.mark.parametrize("attention", ["joint", "cross"])
def test_dropped_text_equals_no_text(attention: str) -> None:
    config = dit_config("dit-micro-base", attention=attention)
    model, given = build_awake_dit(config), make_inputs(config)
    dropped = predict(model, given | {"text_keep_B": torch.tensor([True, False])})
    empty = predict(model, given | {"text_mask_BL": torch.zeros(2, 5, dtype=torch.bool)})
    torch.testing.assert_close(dropped[0], predict(model, given)[0])
    torch.testing.assert_close(dropped[1], empty[1])
    assert not torch.allclose(dropped[1], predict(model, given)[1])


def test_an_embedding_of_zeros_is_none() -> None:
    config = dit_config("dit-micro-base", image_embedding_dim=6)
    model, given = build_awake_dit(config), inputs_of(config)
    with_one = predict(model, given)
    given.pop("image_embedding_BE")
    torch.testing.assert_close(predict(model, given)[0], with_one[0])
    assert not torch.allclose(predict(model, given)[1], with_one[1])


@pytest.mark.parametrize("name", sorted(MICRO))
def test_rows_do_not_see_each_other(name: str) -> None:
    config = dit_config(name)
    model, given = build_awake_dit(config), make_inputs(config, batch=3)
    alone = predict(model, {name: value[1:2] for name, value in given.items()})
    torch.testing.assert_close(predict(model, given)[1:2], alone, atol=1e-5, rtol=1e-4)


def test_a_part_of_an_image_is_what_its_crop_is() -> None:
    """Windows reach one window further per block, so that the middle of a crop sees nothing outside of it."""
    config = dit_config("dit-micro-sr", depth=2)
    model, given = build_awake_dit(config), make_inputs(config, size=64)
    whole = predict(model, given)
    inside = slice(8, 56)  # on the grid of windows
    cropped = {name: value[..., inside, inside] if value.ndim == 4 else value for name, value in given.items()}
    torch.testing.assert_close(predict(model, cropped)[..., 8:40, 8:40], whole[..., 16:48, 16:48], atol=1e-5, rtol=1e-4)
    # The second block has shifted windows: content passes from window to window, but not round the image.
    changed = dict(given) | {"x_BCHW": given["x_BCHW"].clone()}
    changed["x_BCHW"][..., :4, :4] += 1
    apart = (predict(model, changed) - whole).abs().amax(dim=(0, 1)) > 1e-6
    reached = apart.nonzero().amax(0).tolist()
    assert reached == [11, 11]  # its window of 8 pixels, and half of the next


@pytest.mark.parametrize("change", [{}, {"attention": "cross"}])
def test_patches_know_where_they_are(change: dict[str, Any]) -> None:
    config = dit_config("dit-micro-base", **change)
    given = make_inputs(config) | {"x_BCHW": torch.zeros(2, 3, 16, 16)}
    corners = predict(build_awake_dit(config), given)[0, :, ::12, ::12].flatten(1).T  # of equal patches
    assert torch.pdist(corners).min() > 1e-3


def test_invalid_inputs_are_refused() -> None:
    base, sr = DiT(PRESETS["dit-micro-base"]), DiT(PRESETS["dit-micro-sr"])
    given = make_inputs(base.config)
    with pytest.raises(ValueError, match="multiples of 4"):
        predict(base, make_inputs(base.config, size=18))
    with pytest.raises(ValueError, match="multiples of 8"):
        predict(sr, make_inputs(sr.config, size=20))
    with pytest.raises(ValueError, match="takes no low-resolution"):
        predict(base, given | {"lowres_BCHW": torch.zeros(2, 3, 16, 16)})
    with pytest.raises(ValueError, match="takes no image embedding; set image_embedding_dim"):
        predict(base, given | {"image_embedding_BE": torch.zeros(2, 6)})
    with pytest.raises(ValueError, match="needs text_BLD"):
        base(torch.zeros(1, 3, 16, 16), torch.zeros(1), Conditions())
    given = make_inputs(sr.config)
    given.pop("lowres_BCHW")
    with pytest.raises(ValueError, match="needs lowres_BCHW"):
        predict(sr, given)


@pytest.mark.parametrize("name", ["pooled_text_BE", "region_masks_BRHW", "region_text_BRE"])
def test_unsupported_conditions_are_refused_by_name(name: str) -> None:
    config = dit_config("dit-micro-base")
    with pytest.raises(ValueError, match=f"backbone dit does not support the condition {name}"):
        predict(DiT(config), make_inputs(config) | {name: torch.zeros(2, 1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 40}, "width 40 does not split into heads of 16"),
        ({"head_width": 6}, "multiple of 4"),
        ({"window": 2, "positions": False}, "window 2 cannot hold the caption"),
        ({"window": 2, "attention": "cross"}, "positions=true span the image"),
        ({"window": 3}, "multiple of 2"),
        ({"lowres_residual": True}, "set lowres: true"),
        ({"context_width": 30}, "multiple of 4"),
        ({"depht": 3}, "Extra inputs"),
    ],
)
def test_invalid_configs_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        dit_config("dit-micro-base", **change)


def test_crops_are_refused_without_windows() -> None:
    for change, part in (({}, "positions=true"), ({"positions": False}, "attention over the whole image")):
        with pytest.raises(ValidationError, match=f"crop=16: model=dit-micro-base has {part}"):
            DiffusionStageConfig(resolution=32, crop=16, model="dit-micro-base", model_overrides=change)


def test_config_round_trips_through_json() -> None:
    for config in PRESETS.values():
        assert DiTConfig(**config.model_dump(mode="json")) == config
