"""A language model of transformers that writes short prompts out, for a cascade that learned from long captions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from dataprep.io.device_settings import configure_device
from dataprep.io.errors import UserError
from dataprep.io.model_imports import import_transformers
from dataprep.io.storage import local_folder
from eval.captioning.answers import choose_dtype, finish_answer, generate_greedy, list_ends, prepare_tokenizer
from eval.captioning.config import ExpandConfig

BATCH = 16  # prompts that are written out at a time


class PromptExpander:
    """A frozen language model; answers are greedy, so a prompt is always written out in the same way."""

    def __init__(self, model: Any, tokenizer: Any, config: ExpandConfig, device: str = "cpu") -> None:
        self.model, self.tokenizer, self.config, self.device = model, tokenizer, config, device
        prepare_tokenizer(tokenizer)
        self.ends = list_ends(model, tokenizer)

    @classmethod
    def load(cls, config: ExpandConfig, device: str = "cpu") -> PromptExpander:
        """Loads the model of ``config``; UserError for what transformers cannot load as a language model."""
        transformers = import_transformers()
        configure_device(device)
        folder, kind = local_folder(config.model), choose_dtype(config.dtype, device)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model, report = transformers.AutoModelForCausalLM.from_pretrained(
                folder, dtype=kind, output_loading_info=True
            )
        except Exception as error:  # transformers raises many types on a folder that it cannot load
            reason = " ".join(str(error).split())[:300]
            raise UserError(
                f"expand: {config.model} cannot be loaded ({reason}); give the whole folder of a causal language model"
            ) from error
        if missing := sorted(report["missing_keys"]):
            raise UserError(
                f"expand: {config.model}: {len(missing)} weights are missing (first: {missing[0]}), random ones would "
                "take their place; give a whole checkpoint"
            )
        return cls(model.to(device).eval().requires_grad_(False), tokenizer, config, device)

    def expand(self, prompts: Sequence[str]) -> dict[str, str]:
        """Returns {prompt: the prompt written out}, without prompts to which the model answers nothing."""
        distinct = [prompt for prompt in dict.fromkeys(prompts) if prompt]
        written: dict[str, str] = {}
        for start in range(0, len(distinct), BATCH):
            part = distinct[start : start + BATCH]
            written |= dict(zip(part, self._answer(part), strict=True))
        return {prompt: text for prompt, text in written.items() if text}

    @torch.inference_mode()
    def _answer(self, prompts: Sequence[str]) -> list[str]:
        turns = [self.write_turn(prompt) for prompt in prompts]
        # The chat's own tokens are in the turn already.
        inputs = self.tokenizer(
            turns, padding=True, return_tensors="pt", add_special_tokens=self.tokenizer.chat_template is None
        )
        wanted = {name: inputs[name].to(self.device) for name in ("input_ids", "attention_mask")}
        answers = generate_greedy(self.model, wanted, self.config.max_tokens, self.tokenizer.pad_token_id)
        texts = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return [finish_answer(text, tokens, self.ends).text for text, tokens in zip(texts, answers, strict=True)]

    def write_turn(self, prompt: str) -> str:
        """Returns the instruction and the prompt as a turn of the model's chat, or as plain text where it has none."""
        text = f"{self.config.prompt}\n\n{prompt}"
        if self.tokenizer.chat_template is None:
            return f"{text}\n\n"
        turns = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))


def expand_prompts(expander: PromptExpander | None, prompts: Sequence[str]) -> dict[str, str]:
    """Returns `PromptExpander.expand`; nothing without an expander."""
    return expander.expand(prompts) if expander is not None else {}
