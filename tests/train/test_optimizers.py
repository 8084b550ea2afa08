"""AdamW and Adafactor with EMA, against torch, transformers and a direct computation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.helpers.toys import ToyTask, ema_error
from tests.helpers.toys import config as toy_config
from tests.helpers.toys import run as run_toy
from train.optimizers import AdafactorEma, AdamWEma, parameter_groups


def test_adamw_follows_torch_and_its_ema_is_correct() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.zeros(5, 3))
    theirs.data.copy_(ours.data)
    ema = ours.detach().clone()
    mine = AdamWEma([ours], lr=0.1, ema_decay=0.5, weight_decay=0.1)
    plain = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.1)
    for update in range(1, 30):
        gradient = torch.randn(5, 3)
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        plain.step()
        decay = min(0.5, (1 + update) / (10 + update))
        ema = decay * ema + (1 - decay) * theirs.detach()
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(mine.state[ours]["ema"], ema)


def test_adafactor_follows_transformers_and_its_ema_is_correct() -> None:
    from transformers.optimization import Adafactor

    torch.manual_seed(0)
    shapes = [(7, 4), (6,)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]
    emas = [param.detach().clone() for param in ours]
    mine = AdafactorEma(ours, lr=0.01, ema_decay=0.5)
    plain = Adafactor(theirs, lr=0.01, relative_step=False, scale_parameter=False)
    for update in range(1, 20):
        for one, other in zip(ours, theirs, strict=True):
            gradient = torch.randn_like(one) * 10 ** torch.randn(1)
            one.grad, other.grad = gradient.clone(), gradient.clone()
        mine.step()
        plain.step()
        decay = min(0.5, (1 + update) / (10 + update))
        emas = [decay * a + (1 - decay) * p.detach() for a, p in zip(emas, theirs, strict=True)]
        for one, other, ema in zip(ours, theirs, emas, strict=True):
            torch.testing.assert_close(one, other)
            torch.testing.assert_close(mine.state[one]["ema"], ema)


def test_adafactor_keeps_a_row_and_a_column_of_a_kernel() -> None:
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    optimizer = AdafactorEma([kernel], lr=0.1, ema_decay=0.9)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    state = optimizer.state[kernel]
    assert set(optimizer.slots(kernel.shape)) == set(state) - {"step"}
    assert state["row"].shape == (8,) and state["column"].shape == (36,)


@pytest.mark.parametrize("kind", [AdamWEma, AdafactorEma])
def test_skip_changes_nothing(kind: type) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = kind([param], lr=0.1, ema_decay=0.9)
    param.grad = torch.full((3,), float("nan"))
    optimizer.skip = True
    optimizer.step()
    assert torch.equal(param, torch.ones(3)) and not optimizer.state[param]


@pytest.mark.parametrize(
    "settings",
    [{"zero_stage": stage} for stage in (0, 1, 2, 3)]
    + [{"zero_stage": 0, "optimizer": "adafactor"}, {"zero_stage": 2, "offload": "optimizer"}],
    ids=str,
)
def test_ema_is_correct_under_zero(settings: dict) -> None:
    assert ema_error(settings) <= 1e-6


def test_adafactor_in_the_loop_resumes_exactly(tmp_path: Path) -> None:
    for name, stop in (("whole", None), ("cut", 16), ("cut", None)):
        run_toy(tmp_path / name, stop, optimizer="adafactor", precision="bf16")
    one, other = (load_file(tmp_path / name / "export/weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    model = ToyTask().build()
    model.load_state_dict(one)  # plain torch
    assert toy_config(optimizer="adafactor").zero_stage == 0


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5))
    model[1].bias.requires_grad_(False)
    decayed, plain = parameter_groups(model, 0.1)
    assert [param.ndim for param in decayed["params"]] == [2] and decayed["weight_decay"] == 0.1
    assert len(plain["params"]) == 2 and plain["weight_decay"] == 0.0
