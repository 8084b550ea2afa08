"""Where the stages look: the weights that the networks attend with, by prompt and time, and the pictures of them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dataprep.io.errors import UserError
from eval.sampling.attention import SPANS, AttentionRecorder, find_text_layers
from eval.sampling.cascade import Cascade
from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.options import SamplingOptions
from eval.sampling.plan import make_plan
from eval.sampling.stage_sampler import LoadedStage
from tests.helpers.cascades import DIT_BASE, DIT_SR, WordEncoder
from tests.helpers.dits import build_awake_dit, dit_config
from tests.helpers.unets import build_awake, make_inputs, predict, unet_config
from train.diffusion.config import DiffusionConfig

PROMPTS = ["a cat", "two big dogs in the rain"]
NETWORKS: dict[str, Any] = {
    "u-net": lambda: build_awake(unet_config("micro-base", text_dim=8)),
    "u-net, two levels": lambda: build_awake(
        unet_config("micro-base", text_dim=8, attention=("joint", "joint"), strides=(1, 2))
    ),
    "u-net, cross": lambda: build_awake(unet_config("micro-base", text_dim=8, attention=("none", "cross"))),
    "transformer": lambda: build_awake_dit(DIT_BASE),
    "transformer, cross": lambda: build_awake_dit(dit_config("dit-micro-base", text_dim=8, attention="cross")),
}


class Blind(nn.Module):
    """Reads no caption."""

    config = DIT_BASE

    def forward(self, x_BCHW: Tensor, log_snr_B: Tensor, conditions: Any) -> Tensor:
        return x_BCHW


def stage(model: Any, name: str = "base") -> LoadedStage:
    entry = StageEntry(name=name, resolution=16, path=".", sampling=SamplingConfig(steps=6, guidance=2.0))
    return LoadedStage(entry, model, DiffusionConfig())


@pytest.mark.parametrize("kind", NETWORKS)
def test_maps_are_what_the_network_attends_with(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with the softmax of the very queries and keys that the attention kernel is given."""
    model = NETWORKS[kind]()
    given = make_inputs(model.config, length=5)
    given["text_mask_BL"][1, 3:] = False
    attend, seen = functional.scaled_dot_product_attention, list[Tensor]()

    def spy(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        if q.shape[2] >= 16 and k.shape[2] in (6, q.shape[2] + 6):  # not among the tokens of the text
            shares = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~torch.as_tensor(attn_mask), -torch.inf).softmax(-1)
            side = int(q.shape[2] ** 0.5)
            tokens = shares.mean(1)[:, :, -6:].mT.reshape(len(q), 6, side, side)
            seen.append(functional.interpolate(tokens, (16, 16), mode="bilinear"))
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", spy)
    expected = predict(model, given)
    with AttentionRecorder(model, (16, 16)) as recorder:
        assert torch.equal(predict(model, given), expected)
    recorder.end_evaluation(0.0, 2)
    count = len(seen) // 2
    assert count == len(find_text_layers(model)) > 0
    assert torch.equal(predict(model, given), expected) and not any(
        layer._forward_pre_hooks for layer in model.modules()
    )
    for row, (length, maps) in enumerate(zip((5, 3), recorder.collect([5, 3]), strict=True)):
        found = torch.from_numpy(maps.maps_KLHW)
        assert found.shape[:2] == (1, length)
        found = functional.interpolate(found, (16, 16), mode="bilinear")
        torch.testing.assert_close(found[0], torch.stack(seen[:count]).mean(0)[row, 1 : 1 + length], atol=2e-3, rtol=0)
        assert 0 < float(found.sum(1).max()) <= 1.001


def sample(stages: list[LoadedStage], prompts: list[str] = PROMPTS, **options: Any) -> Any:
    return Cascade(stages, WordEncoder()).sample(prompts, SamplingOptions(attention=True, **options))


@pytest.mark.parametrize("kind", ["u-net", "transformer"])
def test_maps_of_a_prompt_are_the_same_in_any_batch_and_the_images_those_without(kind: str) -> None:
    """Guidance adds rows without a caption, and a batch padding: neither is part of a map."""
    stages = [stage(NETWORKS[kind]())]
    both, alone = sample(stages), sample(stages, PROMPTS[1:])
    plain = Cascade(stages, WordEncoder()).sample(PROMPTS, SamplingOptions())
    assert plain.attention == {} and list(both.attention) == ["base"]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(both.images, plain.images, strict=True))
    maps = both.attention["base"]
    assert [found.maps_KLHW.shape[:2] for found in maps] == [(SPANS, 2), (SPANS, 6)]
    np.testing.assert_allclose(maps[1].maps_KLHW, alone.attention["base"][0].maps_KLHW, atol=2e-3)
    assert not np.allclose(maps[0].maps_KLHW[0], maps[0].maps_KLHW[-1], atol=1e-5)  # time matters
    noise = [level for span in maps[0].noise for level in span]
    assert noise == sorted(noise, reverse=True) and noise[0] > 0.99


def test_parts_of_a_large_batch_are_put_together(monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [stage(NETWORKS["u-net"]())]
    whole = sample(stages).attention["base"]
    monkeypatch.setattr("eval.sampling.stage_sampler.PIXELS", 256)
    for one, other in zip(whole, sample(stages).attention["base"], strict=True):
        np.testing.assert_allclose(one.maps_KLHW, other.maps_KLHW, atol=2e-3)


def test_images_that_are_not_square() -> None:
    (maps,) = sample([stage(NETWORKS["transformer"]())], PROMPTS[:1], size=(24, 16)).attention["base"]
    patch = DIT_BASE.patch
    assert maps.maps_KLHW.shape[2:] == (16 // patch, 24 // patch)


def test_a_network_that_cannot_show_says_so() -> None:
    seeing, blind = stage(NETWORKS["u-net"]()), stage(Blind(), "other")
    with pytest.raises(UserError, match=r"attention: no stage has a layer that shows where it looks: other \(Blind\)"):
        sample([blind])
    with pytest.warns(UserWarning, match=r"attention: stage other \(Blind\) has no layer"):
        plan = make_plan([seeing, blind], [seeing, blind], SamplingOptions(attention=True), {})
    assert plan.watched == {"base"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make_plan([seeing], [seeing], SamplingOptions(attention=True), {}).watched == {"base"}


def test_the_best_of_several_keeps_its_maps() -> None:
    samples = sample([stage(NETWORKS["u-net"]())], PROMPTS, num=2)
    chosen = samples.select([2], [0.0] * 4)
    assert chosen.attention["base"] == [samples.attention["base"][2]]


def test_super_resolution_is_watched_too(tmp_path: Path) -> None:
    stages = [stage(build_awake_dit(DIT_BASE)), stage(build_awake_dit(DIT_SR), "sr")]
    entry = StageEntry(name="sr", resolution=32, low_resolution=16, path=".", sampling=SamplingConfig(steps=2))
    stages[1] = LoadedStage(entry, stages[1].model, DiffusionConfig(prediction="x0"))
    samples = sample(stages, PROMPTS[:1])
    assert {name: maps[0].maps_KLHW.shape[0] for name, maps in samples.attention.items()} == {"base": 4, "sr": 2}
