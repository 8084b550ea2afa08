"""LoRA matrices: no effect at first, the same as a changed weight afterwards, and only where they are asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from tests.helpers.unets import build_awake, make_inputs, predict, unet_config
from train.models.adapters.config import AdapterConfig
from train.models.adapters.lora import add_lora, find_layers, merge_pairs, split_pairs
from train.models.clip_config import ClipModelConfig
from train.models.clip_text import build_open_clip
from train.models.unet.blocks import DoublingConv
from train.models.unet.unet import UNet


def adapt(model: nn.Module, **config: object) -> AdapterConfig:
    """Adds LoRA to ``model`` and fills the B matrices, so that it has an effect; returns its config."""
    adapter = AdapterConfig.model_validate(config)
    torch.manual_seed(1)
    add_lora(model, adapter)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return adapter


@pytest.mark.parametrize("preset", ["micro-base", "micro-sr"])
def test_it_changes_nothing_at_first_and_then_as_much_as_a_merged_weight(preset: str) -> None:
    """Every layer kind of the U-Nets, the doubling convolution too."""
    config = unet_config(preset, text_dim=8)
    model, given = build_awake(config), make_inputs(config)
    plain = predict(model, given)
    torch.manual_seed(0)
    add_lora(model, AdapterConfig(rank=3))
    assert torch.equal(predict(model, given), plain)

    model = build_awake(config)
    adapter = adapt(model, rank=3, alpha=6.0)
    assert adapter.scale == 2.0
    if preset == "micro-base":
        assert any(type(layer.get_submodule("lora_A")) is DoublingConv for layer in find_layers_with_pairs(model))
    adapted, state = predict(model, given), model.state_dict()
    pairs = split_pairs(state)
    assert len(pairs) == len(find_layers(UNet(config)))
    merged = UNet(config).eval()
    merged.load_state_dict(merge_pairs(state, pairs, dict.fromkeys(pairs, adapter.scale)))
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(predict(merged, given), adapted, rtol=1e-4, atol=1e-4)


def find_layers_with_pairs(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if hasattr(module, "lora_A")]


def test_only_the_matrices_are_trained_and_targets_choose_their_layers() -> None:
    model = UNet(unet_config("micro-base", text_dim=8))
    adapt(model, rank=2, targets=["*.query", "text.project"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = {name.rsplit(".lora_", 1)[0] for name in trained}
    assert all(".lora_A.weight" in name or ".lora_B.weight" in name for name in trained)
    assert "text.project" in layers and all(name.endswith(".query") for name in layers - {"text.project"})
    assert len(trained) == 2 * len(layers) > 2


def test_a_target_that_no_layer_has_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"adapter\.targets=\*\.keys: no linear layer.*there are "):
        adapt(UNet(unet_config("micro-base", text_dim=8)), targets=["*.query", "*.keys"])


def test_shared_weights_and_grouped_convolutions_have_none() -> None:
    transformers = import_transformers()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 20}
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes))
    layers = find_layers(t5)
    assert layers and "lm_head" not in layers  # tied to the embedding
    assert find_layers(nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3))).keys() == {"1"}


def test_every_layer_of_a_clip_that_has_a_pair_gets_a_gradient() -> None:
    """Attention of torch and open_clip uses its layers' weights without calling them: these have no pair."""
    config = ClipModelConfig(image_size=32, context_length=4, text_width=32, text_heads=2, embed_dim=16)
    torch.manual_seed(0)
    model = build_open_clip(config, 20, 1, 0)
    adapt(model, rank=2)
    image, text, scale = model(torch.randn(2, 3, 32, 32), torch.tensor([[3, 4, 1, 0], [5, 1, 0, 0]]))
    (scale * image @ text.T).sum().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) > 20 and all(parameter.grad is not None for parameter in trained.values())


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": 0.0}, {"targets": []}, {"kind": "lokr"}])
def test_a_config_out_of_range_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AdapterConfig.model_validate(wrong)
