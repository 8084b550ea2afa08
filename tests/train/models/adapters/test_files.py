"""Adapters as files: what others write and read, and what is merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dataprep.io.errors import UserError
from dataprep.io.model_imports import declare_torchvision_operators
from tests.helpers.unets import build_awake, make_inputs, predict, unet_config
from tests.train.models.adapters.test_lora import adapt
from train.models.adapters.files import load_adapter, match_layers, merge_adapter, save_adapter
from train.models.adapters.lora import is_adapter_tensor
from train.models.unet.unet import UNet

CONFIG = unet_config("micro-base", text_dim=8)
TARGETS = ["*.query", "text.project", "stem"]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A U-Net with LoRA of rank 4 and alpha 2, and its file."""
    model = build_awake(CONFIG)
    adapter = adapt(model, rank=4, alpha=2.0, targets=TARGETS)
    path = tmp_path_factory.mktemp("adapter") / "adapter.safetensors"
    tensors = {name: value for name, value in model.state_dict().items() if is_adapter_tensor(name)}
    save_adapter(path, tensors, adapter, "unet", trained_steps=7)
    return model, path


def test_a_file_holds_the_adapter_alone_and_merges_to_the_same_model(adapted: tuple[nn.Module, Path]) -> None:
    model, path = adapted
    assert {name.split(".")[-2:][0] for name in load_file(path) if not name.endswith("alpha")} == {"lora_A", "lora_B"}
    adapter = load_adapter(str(path))
    assert set(adapter.scales.values()) == {0.5}
    assert adapter.settings["component"] == "unet" and adapter.settings["trained_steps"] == 7
    plain, given = build_awake(CONFIG), make_inputs(CONFIG)
    merged = UNet(CONFIG).eval()
    merged.load_state_dict(merge_adapter(plain.state_dict(), adapter, 1.0))
    torch.testing.assert_close(predict(merged, given), predict(model, given), rtol=1e-4, atol=1e-4)
    half = merge_adapter(plain.state_dict(), adapter, 0.5)["stem.weight"]
    whole, nothing = merged.state_dict()["stem.weight"], plain.state_dict()["stem.weight"]
    torch.testing.assert_close(half, (whole + nothing) / 2)


def test_peft_reads_the_file_and_computes_the_same(adapted: tuple[nn.Module, Path]) -> None:
    declare_torchvision_operators()
    import peft

    model, path = adapted
    names = [name.rsplit(".lora_A", 1)[0] for name in model.state_dict() if ".lora_A." in name]
    theirs: Any = build_awake(CONFIG)
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=names)
    theirs = peft.inject_adapter_in_model(config, theirs)
    pairs = {k.removeprefix("unet."): v for k, v in load_file(path).items() if not k.endswith("alpha")}
    result: Any = peft.set_peft_model_state_dict(theirs, pairs)
    assert not result.unexpected_keys
    given = make_inputs(CONFIG)
    torch.testing.assert_close(predict(theirs, given), predict(model, given), rtol=1e-5, atol=1e-5)


def test_diffusers_reads_the_file_and_computes_the_same(tmp_path: Path) -> None:
    """Attention layers, where diffusers trains LoRA; alpha differs from the rank."""
    declare_torchvision_operators()
    from diffusers import UNet2DConditionModel

    sizes: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 8}
    blocks: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    torch.manual_seed(0)
    build: Any = UNet2DConditionModel
    ours = build(sample_size=8, in_channels=3, out_channels=3, **sizes, **blocks, layers_per_block=1)
    theirs = build.from_config(ours.config)
    theirs.load_state_dict(ours.state_dict())
    given = (torch.randn(1, 3, 8, 8), 5, torch.randn(1, 3, 8))
    plain = theirs(*given).sample
    adapter = adapt(ours, rank=2, alpha=6.0, targets=["*.to_q", "*.to_k", "*.to_v", "*.to_out.0"])
    save_adapter(tmp_path / "a.safetensors", ours.state_dict(), adapter, "unet")
    theirs.load_lora_adapter(str(tmp_path), weight_name="a.safetensors", prefix="unet")
    assert (ours(*given).sample - plain).abs().max() > 1e-3
    torch.testing.assert_close(theirs(*given).sample, ours(*given).sample, rtol=1e-4, atol=1e-5)


def rename(tensors: dict[str, Tensor], change: Callable[[str], str]) -> dict[str, Tensor]:
    return {change(name): value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "change",
    [
        lambda name: "base_model.model." + name.removeprefix("unet."),
        lambda name: "base_model.model." + name,
        lambda name: name.replace("lora_A", "lora_A.default").replace("lora_B", "lora_B.default"),
        lambda name: name.replace("lora_A", "lora_down").replace("lora_B", "lora_up"),
        lambda name: name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        lambda name: (
            "lora_unet_"
            + name.removeprefix("unet.")
            .replace(".lora_A.", "|lora_down.")
            .replace(".lora_B.", "|lora_up.")
            .replace(".alpha", "|alpha")
            .partition("|")[0]
            .replace(".", "_")
            + "."
            + name.replace(".lora_A.", "|lora_down.")
            .replace(".lora_B.", "|lora_up.")
            .replace(".alpha", "|alpha")
            .partition("|")[2]
        ),
    ],
    ids=["peft", "peft of a pipeline", "peft of a model", "sd-scripts' halves", "old diffusers", "sd-scripts"],
)
def test_the_names_of_others_are_read(
    adapted: tuple[nn.Module, Path], tmp_path: Path, change: Callable[[str], str]
) -> None:
    path = tmp_path / "renamed.safetensors"
    save_file(rename(load_file(adapted[1]), change), path)
    state = build_awake(CONFIG).state_dict()
    one, other = (merge_adapter(state, load_adapter(str(file)), 1.0) for file in (adapted[1], path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_without_alpha_the_update_is_scaled_by_the_metadata_or_not_at_all(
    adapted: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    path = tmp_path / "bare.safetensors"
    pairs = {name: value for name, value in load_file(adapted[1]).items() if not name.endswith("alpha")}
    save_file(pairs, path)
    assert set(load_adapter(str(path)).scales.values()) == {1.0}
    save_file(pairs, path, metadata={"lora_adapter_metadata": '{"unet.lora_alpha": 2, "unet.r": 8}'})
    assert set(load_adapter(str(path)).scales.values()) == {0.25}


def test_another_model_does_not_match(adapted: tuple[nn.Module, Path]) -> None:
    adapter = load_adapter(str(adapted[1]))
    assert match_layers(adapter, build_awake(CONFIG).state_dict()) is not None
    assert match_layers(adapter, build_awake(unet_config("micro-sr", text_dim=8)).state_dict()) is None
    assert match_layers(adapter, build_awake(unet_config("micro-base", text_dim=9)).state_dict()) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such safetensors file"),
        (b"nothing", "no safetensors file"),
        ({"a.weight": torch.ones(1)}, r"not a LoRA \(a\.weight\)"),
        ({"a.lora_A.weight": torch.ones(1, 2)}, r"not a LoRA \(a\)"),
        ({"a.alpha": torch.ones(1)}, r"not a LoRA \(it is empty\)"),
    ],
)
def test_what_is_no_adapter_is_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "a.safetensors"
    if isinstance(content, dict):
        save_file(content, path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"adapter .*a\.safetensors: {message}") as caught:
        load_adapter(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "metadata", "message"),
    [
        ({}, {"imagen_ray": "[1]"}, r"metadata imagen_ray is \[1\], no mapping"),
        ({}, {"lora_adapter_metadata": "[1]"}, r"metadata lora_adapter_metadata is \[1\], no mapping"),
        ({}, {"lora_adapter_metadata": '{"r": 0, "lora_alpha": 2}'}, "has lora_alpha 2 and r 0; .* r above 0"),
        ({}, {"lora_adapter_metadata": '{"r": [4], "lora_alpha": 2}'}, r"has lora_alpha 2 and r \[4\]; .*numbers"),
        (
            {"a.lora_A.weight": torch.ones(0, 3), "a.lora_B.weight": torch.ones(2, 0)},
            {},
            r"a\.lora_A has shape \(0, 3\)",
        ),
        ({"a.lora_A.weight": torch.ones(())}, {}, r"tensor a\.lora_A has shape \(\); save it with two axes"),
        ({"a.lora_B.weight": torch.ones(2)}, {}, r"tensor a\.lora_B has shape \(2,\); save it with two axes"),
        ({"a.alpha": torch.ones(2)}, {}, r"not a LoRA \(a\.alpha\)"),
    ],
)
def test_malformed_parts_of_an_adapter_are_named(
    tmp_path: Path, changes: dict[str, Tensor], metadata: dict[str, str], message: str
) -> None:
    whole = {"a.lora_A.weight": torch.ones(1, 3), "a.lora_B.weight": torch.ones(2, 1), "a.alpha": torch.ones(1)}
    path = tmp_path / "a.safetensors"
    save_file(whole | changes, path, metadata=metadata)
    with pytest.raises(UserError, match=rf"adapter .*a\.safetensors: .*{message}"):
        match_layers(load_adapter(str(path)), {"a.weight": torch.ones(2, 3)})
