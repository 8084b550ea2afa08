"""Config of the `text_tuning` task. Light: loads no torch."""

from __future__ import annotations

from typing import ClassVar, Self

from pydantic import Field, model_validator

from train.config import TrainConfig


class TextTuningConfig(TrainConfig):
    """A text encoder tuned through a frozen image model: learned words (textual inversion), LoRA, or both."""

    brings_weights: ClassVar[bool] = True

    model: str = Field(
        description="the image model, which stays as it is: a run (RUN, RUN:STAGE), an exported folder, or a base "
        "stage's folder; trained on the embeddings of the encoder of `encoder`"
    )
    resolution: int = Field(ge=1, description="height and width of the images of that stage, one of pack.resolutions")
    tokens: dict[str, str] = Field(
        default_factory=dict,
        description="new words, each with the known words as whose mean it begins, such as {zwx: square}",
    )
    weight_decay: float = Field(0.0, ge=0, description="decay of what is learned, in units of the learning rate")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        if not self.tokens and self.adapter is None:
            raise ValueError("text_tuning: nothing is learned; name words in `tokens`, or set `adapter`")
        if self.init is not None:
            raise ValueError(f"text_tuning.init={self.init.source}: the encoder is that of `encoder`; leave init out")
        for word, known in self.tokens.items():
            if not word or any(letter.isspace() for letter in word):
                raise ValueError(f"text_tuning.tokens: {word!r} is not one word; take one without blanks")
            if not known.strip():
                raise ValueError(f"text_tuning.tokens.{word}: give the word that it begins as, such as dog")
        return self

    @property
    def trains_part(self) -> bool:
        """The encoder is frozen but for what is learned."""
        return True
