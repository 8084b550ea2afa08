"""Muon with EMA, against singular value decompositions, torch's AdamW and a direct computation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers.toys import ToyTask
from tests.helpers.toys import run as run_toy
from train.config import TrainConfig
from train.engine import Engine
from train.muon import ITERATIONS, QUINTIC, RMS, MuonEma, is_matrix, orthogonalise
from train.optimizers import parameter_groups


def quintic(values: Tensor) -> Tensor:
    """The polynomial applied to singular values directly."""
    one, three, five = QUINTIC
    for _ in range(ITERATIONS):
        values = one * values + three * values**3 + five * values**5
    return values


def test_singular_values_become_those_of_the_quintic_and_the_vectors_stay() -> None:
    generator = torch.Generator().manual_seed(1)
    stacks = [torch.randn(*shape, generator=generator) for shape in [(3, 20, 20), (1, 20, 50), (2, 50, 20)]]
    for x_NRC, orthogonal_NRC in zip(stacks, orthogonalise(stacks), strict=True):
        left, values, right = torch.linalg.svd(x_NRC.double(), full_matrices=False)
        moved = quintic(values / values.square().sum(1, keepdim=True).sqrt())
        torch.testing.assert_close(orthogonal_NRC.double(), left * moved[:, None] @ right, atol=2e-3, rtol=0)
        assert moved.amin() > 0.6 and moved.amax() < 1.3


@pytest.mark.parametrize(("shape", "yes"), [((16, 16), True), ((32, 4, 2, 2), True), ((3, 400), False), ((64,), False)])
def test_matrices_are_those_with_two_long_sides(shape: tuple[int, ...], yes: bool) -> None:
    assert is_matrix(torch.Size(shape)) == yes
    assert ("momentum" in MuonEma.slots(torch.Size(shape))) == yes


def test_matrices_get_orthogonal_updates_and_all_else_adams() -> None:
    torch.manual_seed(0)
    shapes = [(16, 40), (24, 4, 3, 3), (16, 40), (7,), (3, 50)]
    ours = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    theirs = [nn.Parameter(param.detach().clone()) for param in ours]
    emas = [param.detach().clone() for param in ours]
    momenta = [torch.zeros(shape) for shape in shapes[:3]]
    mine = MuonEma(ours, lr=0.01, ema_decay=0.5, weight_decay=0.1)
    adam = torch.optim.AdamW(theirs[3:], lr=0.01, betas=(0.9, 0.99), weight_decay=0.1)
    for update in range(1, 8):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn_like(one)
            if one.ndim == 4:
                one.grad = one.grad.contiguous(memory_format=torch.channels_last)
            other.grad = one.grad.clone()
        mine.step()
        adam.step()
        for param, momentum in zip(theirs[:3], momenta, strict=True):
            assert param.grad is not None
            momentum.mul_(0.95).add_(param.grad, alpha=0.05)
            ahead = (0.05 * param.grad + 0.95 * momentum).flatten(1)
            change = orthogonalise([ahead[None]])[0].reshape(param.shape) * RMS * max(ahead.shape) ** 0.5
            param.data.mul_(1 - 0.01 * 0.1).sub_(change, alpha=0.01)
        decay = min(0.5, (1 + update) / (10 + update))
        emas = [decay * ema + (1 - decay) * param.detach() for ema, param in zip(emas, theirs, strict=True)]
        for one, other, ema in zip(ours, theirs, emas, strict=True):
            torch.testing.assert_close(one, other)
            torch.testing.assert_close(mine.state[one]["ema"], ema)
    rms = float(change.square().mean().sqrt())
    assert 0.7 * RMS < rms < 1.2 * RMS  # Adam's size, whatever the shape


def test_the_engine_trains_a_matrix_from_any_memory_layout() -> None:
    model = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 16, 3, padding=1))
    engine = Engine(model, TrainConfig(zero_stage=0, optimizer="muon"))
    x_BCHW = torch.randn(4, 16, 6, 6).contiguous(memory_format=torch.channels_last)
    losses = []
    for _ in range(30):
        loss = (engine(x_BCHW) - x_BCHW).square().mean()
        engine.backward(loss)
        assert engine.step(0.02).applied
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_muon_in_the_loop_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: ToyTask) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 33), nn.SiLU(), nn.Linear(33, 33), nn.SiLU(), nn.Linear(33, 8))

    monkeypatch.setattr(ToyTask, "build", build)
    for name, stop in (("whole", None), ("cut", 16), ("cut", None)):
        run_toy(tmp_path / name, stop, optimizer="muon")
    one, other = (load_file(tmp_path / name / "export/weights.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in other)
    run_toy(tmp_path / "adamw", None)
    plain = load_file(tmp_path / "adamw" / "export/weights.safetensors")
    assert not torch.equal(one["2.weight"], plain["2.weight"])


def test_groups_that_do_not_decay_stay() -> None:
    model = nn.Linear(20, 20)
    optimizer = MuonEma(parameter_groups(model, 0.5), lr=0.1, ema_decay=0.9)
    before = model.bias.detach().clone()
    model.weight.grad, model.bias.grad = torch.zeros(20, 20), torch.zeros(20)
    weight = model.weight.detach().clone()
    optimizer.step()
    assert torch.equal(model.bias, before)
    torch.testing.assert_close(model.weight, weight * (1 - 0.1 * 0.5))
