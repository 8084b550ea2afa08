"""A discriminator beside a network that makes images, the same for any number of ranks.

It is small, whole on every rank, has its own optimizer, and learns from the images that the network makes in training.

Shape legend: B batch, C channels, H W height and width, E width of the pooled caption, h w of the logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from train.loader.sampler import SampleRandom, sample_seed
from train.models.discriminator import Judgement, PatchDiscriminator
from train.optimizers import ADAM_STEP


class AdversarialLoss(NamedTuple):
    """Losses of both sides as functions of logits; > 0 stands for real."""

    real: Callable[[Tensor], Tensor]  # of the discriminator, for real images
    made: Callable[[Tensor], Tensor]  # of the discriminator, for made ones
    generator: Callable[[Tensor], Tensor]


LOSSES: dict[str, AdversarialLoss] = {
    "hinge": AdversarialLoss(lambda x: functional.relu(1 - x), lambda x: functional.relu(1 + x), lambda x: -x),
    "logistic": AdversarialLoss(
        lambda x: functional.softplus(-x), functional.softplus, lambda x: functional.softplus(-x)
    ),
}


class Adversary:
    """The discriminator's side of a training; a `train.task.Companion`.

    ``config``: the keys of `train.tasks.adversarial_config.AdversarialConfig`; ``text_dim``: width of the captions'
    tokens, None: it sees none; ``accumulation``: micro-batches per update.
    """

    def __init__(self, config: Any, channels: int, text_dim: int | None, accumulation: int, seed: int) -> None:
        self.config, self.accumulation, self.losses = config, accumulation, LOSSES[config.loss]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sample_seed(seed, 0, 0, "discriminator"))
            self.model = PatchDiscriminator(channels, config.width, config.layers, text_dim, config.detail)
        self.names = [name for name, _ in self.model.named_parameters()]
        self.params = [param for _, param in self.model.named_parameters()]
        self.learns = False  # whether it saw images in this update

    @property
    def sees_text(self) -> bool:
        """Whether `play` needs pooled captions."""
        return self.model.text is not None

    def begin(self, module: nn.Module) -> None:
        """Moves the discriminator to the device of ``module``, and makes its optimizer."""
        self.model.to(next(module.parameters()).device)
        betas = (self.config.beta1, self.config.beta2)
        self.optimizer = torch.optim.AdamW(
            self.params, lr=self.config.learning_rate, betas=betas, weight_decay=0.0, fused=True
        )
        for param in self.params:
            self.optimizer.state[param] = {
                "step": torch.zeros((), dtype=torch.float32, device=param.device),
                "exp_avg": torch.zeros_like(param),
                "exp_avg_sq": torch.zeros_like(param),
            }

    def weight_at(self, step: int) -> float:
        """Returns the weight of the discriminator's verdict at an update."""
        past = step - self.config.start
        return 0.0 if past < 0 else float(self.config.weight * min(1.0, (past + 1) / (self.config.ramp + 1)))

    def play(
        self,
        made_BCHW: Tensor,
        real_BCHW: Tensor,
        text_BE: Tensor | None,
        random: SampleRandom,
        weight_B: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Adds a micro-batch to the discriminator's gradients; returns the weighted loss of the network (scalar).

        And scalars to log: both losses and the penalty, mean logits, and ``diversity``: the variance over the batch of
        the discriminator's features of made images over that of real ones, 1 or so where they are as different from
        each other, 0 where they all look alike. ``weight_B``: how much each image counts; its mean may be below 1.
        """
        weight = self.weight_at(random.step)
        one_B = torch.ones(len(made_BCHW), device=made_BCHW.device) if weight_B is None else weight_B
        if random.step < self.config.start:
            zero = made_BCHW.new_zeros(())
            names = ("generator", "discriminator", "r1", "logit_real", "logit_made", "diversity")
            return zero, {f"adversarial_{name}": zero for name in names}
        metrics = self._learn(made_BCHW.detach().float(), real_BCHW.float(), text_BE, random.step, one_B)
        self.model.requires_grad_(False)
        logits_Bhw = self.model(made_BCHW.float(), text_BE).logits_Bhw
        self.model.requires_grad_(True)
        generator = self._mean(self.losses.generator(logits_Bhw), one_B)
        return weight * generator, {"adversarial_generator": generator, **metrics}

    def _learn(
        self, made_BCHW: Tensor, real_BCHW: Tensor, text_BE: Tensor | None, step: int, weight_B: Tensor
    ) -> dict[str, Tensor]:
        """Adds the gradient of the discriminator's own loss on a micro-batch."""
        self.learns = True
        penalised = bool(self.config.r1) and step % self.config.r1_every == 0
        real_BCHW = real_BCHW.detach().requires_grad_(penalised)
        real: Judgement = self.model(real_BCHW, text_BE)
        made: Judgement = self.model(made_BCHW, text_BE)
        loss = self._mean(self.losses.real(real.logits_Bhw), weight_B)
        loss = loss + self._mean(self.losses.made(made.logits_Bhw), weight_B)
        penalty = loss.new_zeros(())
        if penalised:
            score = real.logits_Bhw.mean((1, 2)).sum()
            (slope_BCHW,) = torch.autograd.grad(score, real_BCHW, create_graph=True)
            penalty = slope_BCHW.square().sum((1, 2, 3)).mean() * (self.config.r1 / 2 * self.config.r1_every)
        ((loss + penalty) / self.accumulation).backward()
        spread, real_spread = (judged.features_BC.detach().var(0, correction=0).sum() for judged in (made, real))
        return {
            "adversarial_discriminator": loss,
            "adversarial_r1": penalty,
            "adversarial_logit_real": real.logits_Bhw.mean(),
            "adversarial_logit_made": made.logits_Bhw.mean(),
            "adversarial_diversity": spread / real_spread.clamp(min=1e-12),
        }

    @staticmethod
    def _mean(value_Bhw: Tensor, weight_B: Tensor) -> Tensor:
        return (value_Bhw.mean((1, 2)) * weight_B).mean()

    @torch.no_grad()
    def end_update(self, applied: bool) -> dict[str, Tensor]:
        """Averages the gradients over the ranks, clips them and updates; skips where the network's update was skipped.

        Returns ``adversarial_grad_norm``, before clipping. An update with a gradient that is not finite is skipped.
        """
        if not self.learns:
            return {"adversarial_grad_norm": torch.zeros((), device=self.params[0].device)}
        self.learns = False
        grads = [param.grad if param.grad is not None else torch.zeros_like(param) for param in self.params]
        flat = torch.cat([grad.flatten() for grad in grads])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(flat)
            flat /= dist.get_world_size()
        norm = flat.norm()
        if applied and math.isfinite(float(norm)):
            flat = flat * (self.config.grad_clip / (norm + 1e-6)).clamp(max=1.0)
            for param, part in zip(self.params, flat.split([grad.numel() for grad in grads]), strict=True):
                param.grad = part.view_as(param)
            ADAM_STEP(self.optimizer)
        self.optimizer.zero_grad()
        return {"adversarial_grad_norm": norm}

    def state(self) -> dict[str, Tensor]:
        """Returns what a checkpoint stores: weights and the optimizer's moments."""
        found = dict(self.model.state_dict())
        for name, param in zip(self.names, self.params, strict=True):
            found |= {f"{name}/{slot}": value for slot, value in self.optimizer.state[param].items()}
        return found

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Sets what `state` returned."""
        self.model.load_state_dict({name: state[name] for name in self.model.state_dict()})
        for name, param in zip(self.names, self.params, strict=True):
            for slot, value in self.optimizer.state[param].items():
                value.copy_(state[f"{name}/{slot}"])


def make_adversary(config: Any, channels: int, text_dim: int | None, accumulation: int, seed: int) -> Adversary | None:
    """Returns the discriminator that a config asks for; None without a config. ``text_dim``: of the data, if it has."""
    if config is None:
        return None
    assert not config.text or text_dim is not None, "a discriminator that sees captions needs their embeddings"
    return Adversary(config, channels, text_dim if config.text else None, accumulation, seed)
