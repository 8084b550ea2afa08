"""AdamW and Adafactor with EMA, against torch, transformers and a direct computation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dataprep.io.model_imports import declare_torchvision_operators
from tests.helpers.toys import ToyTask, ema_error
from tests.helpers.toys import config as toy_config
from tests.helpers.toys import run as run_toy
from train import optimizers
from train.config import TrainConfig
from train.engine import Engine
from train.muon import MuonEma
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
    declare_torchvision_operators()  # which transformers imports
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


def adafactor_by_parameter(
    param: Tensor, state: dict[str, Tensor], grad: Tensor, update: int, settings: tuple[float, float, float]
) -> None:
    """One update of one parameter, operation by operation; settings: learning rate, weight decay, EMA decay."""
    rate, decay, ema_decay = settings
    beta = 1 - float(update) ** -0.8
    squared = grad.square() + 1e-30
    if param.ndim >= 2:
        state["row"].lerp_(squared.flatten(1).mean(1), 1 - beta)
        state["column"].lerp_(squared.flatten(1).mean(0), 1 - beta)
        rows = (state["row"] / state["row"].mean()).rsqrt()
        change = (grad.flatten(1) * rows[:, None] * state["column"].rsqrt()[None]).view_as(param)
    else:
        state["exp_avg_sq"].lerp_(squared, 1 - beta)
        change = grad * state["exp_avg_sq"].rsqrt()
    change = change / change.square().mean().sqrt().clamp(min=1.0) * rate
    param.mul_(1 - rate * decay).sub_(change)
    state["ema"].lerp_(param, 1 - min(ema_decay, (1 + update) / (10 + update)))


@pytest.mark.parametrize("chunk", [1, 100, 2**26])
def test_adafactor_of_many_tensors_is_that_of_each_bit_by_bit(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizers, "CHUNK", chunk)
    torch.manual_seed(0)
    shapes = [(7, 4), (6,), (8, 4, 3, 3), (1,), (), (5, 1), (3, 50)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [param.detach().clone() for param in ours]
    late = 2  # has its first gradient later, so it has had fewer updates than the others
    groups = [{"params": ours[:4], "weight_decay": 0.1}, {"params": ours[4:], "weight_decay": 0.0}]
    mine = AdafactorEma(groups, lr=0.01, ema_decay=0.9)
    mine.allocate(ours)
    states = [{name: value.clone() for name, value in mine.state[param].items()} for param in ours]
    for update in range(1, 15):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            one.grad = torch.randn_like(one) * 10 ** torch.randn(1).item()
            if one.ndim == 4 and update % 2:
                one.grad = one.grad.contiguous(memory_format=torch.channels_last)
            count = update - 3 if index == late else update
            if count < 1:
                one.grad = None
                continue
            settings = (0.01, 0.1 if index < 4 else 0.0, 0.9)
            adafactor_by_parameter(other, states[index], one.grad.clone().contiguous(), count, settings)
        mine.step()
        for one, other, state in zip(ours, theirs, states, strict=True):
            assert torch.equal(one, other)
            assert all(torch.equal(mine.state[one][name], value) for name, value in state.items())
    assert [mine.updates[param] for param in ours] == [14, 14, 11, 14, 14, 14, 14]


class CountedCalls(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.__name__.split(".")[0]] += 1
        return func(*args, **(kwargs or {}))


WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_to_copy")  # they wait for the device, or copy


@contextmanager
def at_most_waits(allowed: int) -> Iterator[Counter[str]]:
    """Asserts how many operators of the body wait for the device."""
    with CountedCalls() as counted:
        yield counted.calls
    waits = {name: count for name, count in counted.calls.items() if name in WAITS}
    assert sum(waits.values()) <= allowed, waits


def make_gradients(model: nn.Module) -> None:
    for param in model.parameters():
        param.grad = torch.randn_like(param)


@pytest.mark.parametrize("kind", [AdamWEma, AdafactorEma, MuonEma])
def test_an_update_never_waits_for_the_device(kind: type) -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(20)))
    optimizer = kind(parameter_groups(model, 0.1), lr=0.1, ema_decay=0.9)
    make_gradients(model)
    optimizer.step()
    with at_most_waits(0) as calls:
        optimizer.step()
    # Adafactor's means and Muon's views are per tensor; all else is for many tensors at once.
    assert calls.total() < (12 if kind is AdamWEma else 12 * 40)


@pytest.mark.parametrize(
    "changes", [{}, {"optimizer": "adafactor"}, {"optimizer": "muon"}, {"precision": "bf16"}], ids=str
)
def test_an_update_of_the_engine_waits_once_for_the_norm(changes: dict[str, Any]) -> None:
    engine = Engine(nn.Sequential(*(nn.Linear(16, 16) for _ in range(20))), TrainConfig(zero_stage=0, **changes))
    for _ in range(2):
        engine.backward(engine(torch.randn(4, 16)).square().mean())
        with at_most_waits(1):
            assert engine.step(0.1).applied
    with at_most_waits(0):
        assert engine.updates() == 2


@pytest.mark.parametrize("kind", [AdamWEma, AdafactorEma, MuonEma])
def test_the_number_of_updates_can_be_set(kind: type) -> None:
    """As after a resume: the next update has the decays of that number."""
    ours, theirs = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    resumed, whole = (kind([param], lr=0.1, ema_decay=0.999) for param in (ours, theirs))
    for update in range(8):
        if update == 5:
            resumed.allocate([ours])
            resumed.set_updates([ours], 5)
            ours.data.copy_(theirs.data)
            for name in whole.slots(theirs.shape):
                resumed.state[ours][name].copy_(whole.state[theirs][name])
        ours.grad = theirs.grad = torch.full((3, 2), float(update + 1))
        whole.step()
        if update >= 5:
            resumed.step()
    assert torch.equal(ours, theirs) and torch.equal(resumed.state[ours]["ema"], whole.state[theirs]["ema"])
    assert resumed.updates[ours] == whole.updates[theirs] == 8


def test_adafactor_keeps_a_row_and_a_column_of_a_kernel() -> None:
    kernel = nn.Parameter(torch.randn(8, 4, 3, 3))
    optimizer = AdafactorEma([kernel], lr=0.1, ema_decay=0.9)
    kernel.grad = torch.randn_like(kernel)
    optimizer.step()
    state = optimizer.state[kernel]
    assert set(optimizer.slots(kernel.shape)) == set(state) - {"step"}
    assert state["row"].shape == (8,) and state["column"].shape == (36,)


@pytest.mark.parametrize("kind", [AdamWEma, AdafactorEma, MuonEma])
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
    + [{"zero_stage": 0, "optimizer": name} for name in ("adafactor", "muon")]
    + [{"zero_stage": 2, "offload": "optimizer"}],
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
