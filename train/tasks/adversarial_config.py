"""Config of adversarial training, a part of other tasks. Light: loads no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprep.io.config import Config


class AdversarialConfig(Config):
    """A discriminator that tells what a network makes from real images, and how the network learns from it."""

    weight: float = Field(0.1, gt=0, description="of the discriminator's verdict in the loss of the network")
    start: int = Field(0, ge=0, description="update at which the discriminator begins to learn")
    ramp: int = Field(100, ge=0, description="updates from there over which its verdict gains its weight")
    loss: Literal["hinge", "logistic"] = Field(
        "hinge", description="hinge (Lim and Ye 2017), or logistic, not saturating (Goodfellow et al. 2014)"
    )
    r1: float = Field(
        1.0, ge=0, description="weight of half the squared gradient at real images (Mescheder et al. 2018); 0: none"
    )
    r1_every: int = Field(4, ge=1, description="updates between such penalties, each counted as often")
    learning_rate: float = Field(5e-4, gt=0, description="of the discriminator's own AdamW, constant")
    beta1: float = Field(0.0, ge=0, lt=1, description="its decay of the first moment")
    beta2: float = Field(0.99, ge=0, lt=1, description="its decay of the second moment")
    grad_clip: float = Field(10.0, gt=0, description="largest norm of its gradient; larger ones are scaled down")
    width: int = Field(32, ge=1, description="channels of its first layer; each further one doubles them")
    layers: int = Field(3, ge=1, description="layers that halve the size; each verdict is on one patch")
    text: bool = Field(True, description="it also sees the caption")
    detail: int = Field(
        8, ge=0, description="it sees an image without the mean colours of squares of this side; 0: the whole image"
    )

    def side_divisors(self) -> dict[str, int]:
        """Returns the number that divides height and width of every image that it sees, by the key that sets it."""
        return {f"adversarial.detail={self.detail}": self.detail} if self.detail else {}

    def check(self, side: int, steps: int) -> None:
        """Raises ValueError where it does not suit images of ``side`` pixels, or a training of ``steps`` updates."""
        if self.detail and side % self.detail:
            raise ValueError(
                f"adversarial.detail={self.detail} does not divide {side} pixels; set it to a divisor, or to 0"
            )
        if side < 2**self.layers:
            raise ValueError(f"adversarial.layers={self.layers} leaves nothing of {side} pixels; set it lower")
        if self.start >= steps:
            raise ValueError(f"adversarial.start={self.start}: training ends at {steps} steps; set it lower")
