"""What a stage's updates cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pipeline.planner.network import count_forward_flops
from pipeline.planner.training import StageModel
from train.adversary import make_adversary
from train.loader.sampler import SampleRandom
from train.models.vq.autoencoder import VqAutoencoder
from train.tasks.diffusion_config import DiffusionTrainingConfig
from train.tasks.vq_config import VqTrainingConfig


@pytest.mark.parametrize(("early", "share"), [(0, 0.0), (25, 0.25), (500, 1.0)])
def test_updates_at_half_the_size_cost_what_such_images_cost(early: int, share: float) -> None:
    config = DiffusionTrainingConfig(resolution=16, model="micro-base", steps=100, half_size_steps=early)
    model = StageModel("base", config, 128, 12)
    half, full = (count_forward_flops(model.layout, side, 12) for side in (8, 16))
    assert half < full / 2
    assert model.forward == pytest.approx(share * half + (1 - share) * full, abs=1)
    assert model.whole == full


class Counter(TorchDispatchMode):
    """Counts operations; torch's own counter cannot follow the gradient of a penalty."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=made)
        return made


@pytest.mark.parametrize("every", [0, 1, 2])
def test_an_autoencoder_and_its_discriminator_cost_what_an_update_of_both_costs(every: int) -> None:
    """``every``: updates between the discriminator's penalties; 0: none."""
    rows, steps = 4, 4
    adversarial = {"width": 8, "r1": float(every > 0), "r1_every": max(every, 1), "start": 2, "text": False}
    config = VqTrainingConfig.model_validate(
        {"resolution": 32, "model": "vq-micro", "batch_size": rows, "steps": steps, "adversarial": adversarial}
    )
    adversary = make_adversary(config.adversarial, 3, None, 1, 0)
    assert adversary is not None
    image_BCHW = torch.rand(rows, 3, 32, 32) * 2 - 1
    with Counter() as counter:
        for step in range(steps):
            made = VqAutoencoder(config.autoencoder_config())(image_BCHW)
            random = SampleRandom(0, step, list(range(rows)))
            term, _ = adversary.play(made.image_BCHW, image_BCHW, None, random)
            (term + made.image_BCHW.square().mean() + made.latent_BDhw.square().mean()).backward()
    model = StageModel("vq32", config, 128, 12)
    assert model.update_flops * steps == pytest.approx(counter.total, rel=0.05)
    assert model.parameters == sum(p.numel() for p in VqAutoencoder(config.autoencoder_config()).parameters())
    assert model.activations(model.own_setting()).bytes_per_sample > 0
