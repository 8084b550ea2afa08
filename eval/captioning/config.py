"""Config of captions written by a vision-language model. Light: loads no torch."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from dataprep.io.caption_mix import CAPTION
from dataprep.io.config import Config

NAME = re.compile(r"[a-z][a-z0-9_]*")


class CaptionPrompt(Config):
    """What the model is asked of each image."""

    prompt: str = Field(min_length=1, description="the instruction, without the image")
    max_tokens: int = Field(
        default=64, ge=1, le=2048, description="tokens of an answer; one that is longer is cut after its last sentence"
    )


PROMPTS = {
    "long": CaptionPrompt(
        prompt="Describe this image for someone who cannot see it: what is in it and how much of it, colours, "
        "materials, where things are, text that can be read, the style and the light. Write two to four plain "
        "sentences. Say only what can be seen.",
        max_tokens=160,
    ),
    "short": CaptionPrompt(
        prompt="Write a caption of this image in one short plain sentence of at most fifteen words. Say only what "
        "can be seen.",
        max_tokens=40,
    ),
}


class CaptionConfig(Config):
    """Further captions, written by a vision-language model of transformers for the images that are kept."""

    model: str | None = Field(
        default=None, description="folder or hub name of an image-text-to-text model; null: no captions are written"
    )
    prompts: dict[str, CaptionPrompt] = Field(
        default=PROMPTS,
        description="name of a caption -> how it is asked for; pack.captions and the captions of a source name those "
        "to train on, and only these are written",
    )
    batch_size: int = Field(default=8, ge=1, description="images that a worker describes at a time")
    image_size: int = Field(default=512, ge=16, description="longer side in pixels up to which the model sees an image")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the model; auto: bfloat16 on GPUs, float32 on CPUs"
    )

    @model_validator(mode="after")
    def _names_are_columns(self) -> CaptionConfig:
        for name in self.prompts:
            if not NAME.fullmatch(name) or name == CAPTION:
                raise ValueError(
                    f"prompts.{name}: a caption is named by lower-case letters, digits and _, and not {CAPTION}, which "
                    "is the one that came with the image"
                )
        return self


class ExpandConfig(Config):
    """Short prompts written out by a language model before they are drawn, as long captions are written."""

    model: str = Field(description="folder or hub name of a language model of transformers that follows instructions")
    prompt: str = Field(
        default="Rewrite this prompt for an image as a description of the image, in two to four plain sentences: what "
        "is in it and how much of it, colours, where things are, the style and the light. Keep everything that it "
        "says. Answer with the description alone.",
        min_length=1,
        description="the instruction; the prompt to write out follows it",
    )
    max_tokens: int = Field(default=160, ge=1, le=2048, description="tokens of an answer")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="dtype of the model; auto: bfloat16 on GPUs, float32 on CPUs"
    )
