"""Models of transformers that answer questions about an image, from local folders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from eval.metrics.judges.preference import refuse_model

if TYPE_CHECKING:
    from eval.metrics.judges.config import JudgeConfig

INSTRUCTION = "{} Answer with yes or no."  # to models that write an answer
Answer = Callable[[np.ndarray, str], str]  # image, question -> answer


def load_answerer(config: JudgeConfig, device: str, needs: str) -> Answer:
    """Loads a model of transformers: one that chooses among answers (ViLT), or one that writes them (BLIP, VLMs)."""
    import torch
    from PIL import Image

    from dataprep.io.model_imports import import_transformers

    transformers = import_transformers()
    try:
        processor = transformers.AutoProcessor.from_pretrained(config.model, local_files_only=True)
        chats = getattr(processor, "chat_template", None) is not None
        kind = transformers.AutoModelForImageTextToText if chats else transformers.AutoModelForVisualQuestionAnswering
        model = kind.from_pretrained(config.model, local_files_only=True)
    except Exception as error:  # transformers raises many types on a folder that it cannot load
        raise refuse_model(config, error, needs) from error
    model = model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def answer(image: np.ndarray, question: str) -> str:
        shown = Image.fromarray(image)
        if chats:
            content = [{"type": "image", "image": shown}, {"type": "text", "text": INSTRUCTION.format(question)}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            ).to(device)
            written = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, inputs["input_ids"].shape[1] :]
            return str(processor.batch_decode(written, skip_special_tokens=True)[0])
        inputs = processor(images=shown, text=question, return_tensors="pt", truncation=True).to(device)
        if hasattr(model, "generate"):
            return str(processor.batch_decode(model.generate(**inputs, max_new_tokens=5), skip_special_tokens=True)[0])
        return str(model.config.id2label[int(model(**inputs).logits.argmax(-1))])

    return answer
