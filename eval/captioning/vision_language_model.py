"""A vision-language model of transformers that describes images: any folder of the kind image-text-to-text.

Shape legend: B batch, T tokens of prompts and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from dataprep.io.device_settings import configure_device
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers_vision
from eval.captioning.answers import Answer, choose_dtype, finish_answer, generate_greedy, list_ends, prepare_tokenizer
from eval.captioning.config import CaptionPrompt
from eval.captioning.model_folder import REMEDY


class VisionLanguageModel:
    """A frozen model with its processor; answers are greedy, so the same batch gives the same answers."""

    def __init__(self, model: Any, processor: Any, device: str = "cpu") -> None:
        self.model, self.processor, self.device = model, processor, device
        prepare_tokenizer(processor.tokenizer)
        self.ends = list_ends(model, processor.tokenizer)

    @classmethod
    def load(cls, folder: str, dtype: str = "auto", device: str = "cpu") -> VisionLanguageModel:
        """Loads model and processor from a folder or a hub name; ``dtype`` as in `CaptionConfig`.

        Raises UserError for what transformers cannot load as such a model, and for weights that are not there.
        """
        transformers = import_transformers_vision()
        configure_device(device)
        try:
            processor = transformers.AutoProcessor.from_pretrained(folder)
            model, report = transformers.AutoModelForImageTextToText.from_pretrained(
                folder, dtype=choose_dtype(dtype, device), output_loading_info=True
            )
        except Exception as error:  # transformers raises many types on a folder that it cannot load
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"caption.model={folder}: cannot be loaded ({reason}); {REMEDY}") from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"caption.model={folder}: {len(missing)} weights are missing (first: {missing[0]}), random ones would "
                "take their place; give a whole checkpoint"
            )
        if getattr(processor, "tokenizer", None) is None:
            raise UserError(f"caption.model={folder}: its processor has no tokenizer; {REMEDY}")
        return cls(model.to(device).eval().requires_grad_(False), processor, device)

    def prepare(self, images: Sequence[Image.Image], prompt: CaptionPrompt) -> Any:
        """Returns RGB images of any size, each with the prompt, as `answer` takes them: tensors on the host."""
        texts = [self.write_turn(prompt.prompt)] * len(images)
        return self.processor(images=[[image] for image in images], text=texts, padding=True, return_tensors="pt")

    def write_turn(self, prompt: str) -> str:
        """Returns the prompt as a turn of the model's chat, or after an image token where it has no chat."""
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": prompt}]
            turns = [{"role": "user", "content": content}]
            return str(self.processor.apply_chat_template(turns, add_generation_prompt=True))
        token = getattr(self.processor, "image_token", None)
        return f"{token}\n{prompt}" if isinstance(token, str) else prompt

    @torch.inference_mode()
    def answer(self, prepared: Any, max_tokens: int) -> list[Answer]:
        """Returns what the model writes of each image, at most ``max_tokens`` tokens."""
        inputs = prepared.to(self.device, dtype=self.model.dtype)
        answers = generate_greedy(self.model, inputs, max_tokens, self.processor.tokenizer.pad_token_id)
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [finish_answer(text, tokens, self.ends) for text, tokens in zip(texts, answers, strict=True)]
