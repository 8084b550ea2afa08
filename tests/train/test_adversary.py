"""The discriminator's side of a training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from train.adversary import LOSSES, Adversary, make_adversary
from train.loader.sampler import SampleRandom
from train.tasks.adversarial_config import AdversarialConfig

SMALL: dict[str, Any] = {"width": 8, "layers": 2, "detail": 0, "ramp": 0, "learning_rate": 2e-3, "text": False}


def make(text_dim: int | None = None, accumulation: int = 1, **changes: Any) -> Adversary:
    """Returns an adversary that has begun."""
    config = AdversarialConfig(**{**SMALL, "text": text_dim is not None, **changes})
    adversary = Adversary(config, 3, text_dim, accumulation, 0)
    adversary.begin(nn.Linear(1, 1))
    return adversary


def at(step: int, count: int = 4) -> SampleRandom:
    return SampleRandom(0, step, list(range(count)))


def stripes(count: int, seed: int = 0) -> Tensor:
    """Returns sharp images (count, 3, 16, 16): stripes with a random phase."""
    phase = torch.randint(0, 4, (count,), generator=torch.Generator().manual_seed(seed))
    columns = (torch.arange(16)[None] + phase[:, None]) // 2 % 2 * 2.0 - 1
    return columns[:, None, None, :].expand(-1, 3, 16, -1).contiguous()


def blurred(images_BCHW: Tensor) -> Tensor:
    return functional.avg_pool2d(images_BCHW, 3, stride=1, padding=1, count_include_pad=False)


def test_losses_of_both_sides() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    hinge, logistic = LOSSES["hinge"], LOSSES["logistic"]
    assert hinge.real(x).tolist() == [3, 1, 0] and hinge.made(x).tolist() == [0, 1, 4]
    assert hinge.generator(x).tolist() == [2, 0, -3]
    share = x.sigmoid()
    assert torch.allclose(logistic.real(x), -share.log()) and torch.allclose(logistic.made(x), -(1 - share).log())
    assert torch.allclose(logistic.generator(x), -share.log(), atol=1e-6)


@pytest.mark.parametrize("loss", ["hinge", "logistic"])
def test_it_learns_to_tell_made_from_real_and_pulls_towards_real(loss: str) -> None:
    adversary, real, norms = make(loss=loss, r1=0.1), stripes(8), list[float]()
    for step in range(60):
        _, metrics = adversary.play(blurred(real), real, None, at(step, 8))
        norms.append(float(adversary.end_update(True)["adversarial_grad_norm"]))
    assert (metrics["adversarial_logit_real"] - metrics["adversarial_logit_made"]).item() > 0.5
    assert norms[0] > 0  # later a hinge may be at rest
    made = blurred(real).requires_grad_(True)
    term, _ = adversary.play(made, real, None, at(60, 8))
    term.backward()
    assert made.grad is not None
    assert float((made.grad * (real - made.detach())).sum()) < 0  # a step down the gradient sharpens


def test_its_own_loss_does_not_reach_the_network_nor_the_networks_loss_it() -> None:
    adversary = make()
    made = blurred(stripes(4)).requires_grad_(True)
    adversary.play(made, stripes(4), None, at(0))
    assert made.grad is None  # although the discriminator's backward pass is done
    grads = [param.grad.clone() for param in adversary.params if param.grad is not None]
    term, _ = adversary.play(made, stripes(4), None, at(1))
    before = [param.grad.clone() for param in adversary.params if param.grad is not None]
    term.backward()
    assert made.grad is not None and grads and len(before) == len(adversary.params)
    assert all(torch.equal(one, two.grad) for one, two in zip(before, adversary.params, strict=True))


def test_the_penalty_is_half_the_squared_gradient_at_real_images() -> None:
    adversary, real = make(r1=3.0, r1_every=2), stripes(4)
    _, metrics = adversary.play(blurred(real), real, None, at(2))
    leaf = real.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(adversary.model(leaf, None).logits_Bhw.mean((1, 2)).sum(), leaf)
    wanted = slope.square().sum((1, 2, 3)).mean() * 3.0 / 2 * 2
    assert float(metrics["adversarial_r1"]) == pytest.approx(float(wanted), rel=1e-4)
    assert float(adversary.play(blurred(real), real, None, at(3))[1]["adversarial_r1"]) == 0


def test_its_weight_grows_from_its_start() -> None:
    adversary = make(start=10, ramp=9, weight=0.5)
    weights = [adversary.weight_at(step) for step in (0, 9, 10, 14, 19, 100)]
    assert weights == pytest.approx([0, 0, 0.05, 0.25, 0.5, 0.5])
    term, metrics = adversary.play(blurred(stripes(4)), stripes(4), None, at(9))
    assert float(term) == 0 and not any(float(value) for value in metrics.values())
    before = [param.clone() for param in adversary.params]
    assert float(adversary.end_update(True)["adversarial_grad_norm"]) == 0
    assert all(torch.equal(one, two) for one, two in zip(before, adversary.params, strict=True))
    later, _ = adversary.play(blurred(stripes(4)), stripes(4), None, at(19))
    assert float(later) != 0


def test_how_the_batch_is_split_does_not_matter() -> None:
    whole, parts = make(), make(accumulation=2)
    for step in range(3):
        real, made = stripes(4, step), blurred(stripes(4, step + 9))
        whole.play(made, real, None, at(step))
        for part in (slice(2, 4), slice(0, 2)):
            parts.play(made[part], real[part], None, at(step, 2))
        ours, theirs = whole.end_update(True), parts.end_update(True)
        assert float(ours["adversarial_grad_norm"]) == pytest.approx(float(theirs["adversarial_grad_norm"]), rel=1e-4)
    assert all(torch.allclose(one, two, atol=1e-4) for one, two in zip(whole.params, parts.params, strict=True))


def test_an_update_that_is_skipped_or_not_finite_changes_nothing() -> None:
    adversary = make()
    before = [param.detach().clone() for param in adversary.params]
    adversary.play(blurred(stripes(4)), stripes(4), None, at(0))
    adversary.end_update(False)
    adversary.play(blurred(stripes(4)) * torch.inf, stripes(4), None, at(1))
    adversary.end_update(True)
    assert all(torch.equal(one, two) for one, two in zip(before, adversary.params, strict=True))
    adversary.play(blurred(stripes(4)), stripes(4), None, at(2))
    adversary.end_update(True)
    assert not all(torch.equal(one, two) for one, two in zip(before, adversary.params, strict=True))


def test_it_goes_on_from_its_state() -> None:
    one = make()
    for step in range(2):
        one.play(blurred(stripes(4)), stripes(4), None, at(step))
        one.end_update(True)
    other = make()
    other.load_state({name: value.clone() for name, value in one.state().items()})
    for adversary in (one, other):
        adversary.play(blurred(stripes(4)), stripes(4), None, at(2))
        adversary.end_update(True)
    assert all(torch.equal(a, b) for a, b in zip(one.params, other.params, strict=True))


def test_images_that_all_look_alike_are_noticed() -> None:
    adversary = make()
    _, same = adversary.play(stripes(1).expand(4, -1, -1, -1), stripes(4), None, at(0))
    _, varied = adversary.play(stripes(4), stripes(4), None, at(1))
    assert float(same["adversarial_diversity"]) < 1e-6 and float(varied["adversarial_diversity"]) == pytest.approx(1)


def test_images_count_as_much_as_they_are_said_to() -> None:
    adversary, weight = make(weight=1.0), torch.tensor([1.0, 0.0, 0.0, 0.0])
    made = blurred(stripes(4)).requires_grad_(True)
    adversary.play(made, stripes(4), None, at(0), weight)[0].backward()
    assert made.grad is not None and bool(made.grad[0].any()) and not bool(made.grad[1:].any())


def test_weights_derive_from_the_seed_alone() -> None:
    state = torch.random.get_rng_state()
    one, other, third = (Adversary(AdversarialConfig(**SMALL), 3, None, 1, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.params, other.params, strict=True))
    assert not torch.equal(one.params[0], third.params[0])


def test_a_config_makes_it_or_not() -> None:
    assert make_adversary(None, 3, 8, 1, 0) is None
    for text in (True, False):
        found = make_adversary(AdversarialConfig(text=text), 3, 8, 1, 0)
        assert found is not None and found.sees_text == text
