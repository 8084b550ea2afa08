"""Costs of text encoders, by the sizes in their folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from eval.captioning.config import CaptionConfig
from pipeline.planner.encoders import LARGE_CAPTIONER, estimate_captioner_cost, estimate_text_cost
from pipeline.stages.text_encoder import EncoderConfig
from tests.helpers.encoders import save_encoder
from tests.helpers.vision_language import save_llava


def test_the_encoder_of_a_folder_in_diffusers_layout(tmp_path: Path) -> None:
    save_encoder(tmp_path / "text_encoder", "t5")
    alone = estimate_text_cost(EncoderConfig(model=str(tmp_path / "text_encoder")))
    (tmp_path / "model_index.json").write_text("{}")
    inside = estimate_text_cost(EncoderConfig(model=str(tmp_path)))
    assert (inside.width, inside.layers, inside.parameters) == (alone.width, alone.layers, alone.parameters)
    assert inside.width == 32 and inside.layers == 2


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2-VL-2B-Instruct", 2e9),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", 256e6),
        ("llava-hf/llava-1.5-7b-hf", 7e9),
        ("Qwen/Qwen2.5-VL-0.5B", 0.5e9),
        ("somebody/b12-captions", LARGE_CAPTIONER),
    ],
)
def test_the_captioner_of_a_hub_is_counted_by_its_name(name: str, parameters: float) -> None:
    cost = estimate_captioner_cost(CaptionConfig(model=name))
    assert cost is not None and cost.parameters == parameters
    assert ("unknown size" in cost.note) == (name == "somebody/b12-captions")
    assert estimate_captioner_cost(CaptionConfig()) is None


def test_the_captioner_of_a_folder_is_counted(tmp_path: Path) -> None:
    from dataprep.io.model_imports import import_transformers_vision

    folder = save_llava(tmp_path)
    cost = estimate_captioner_cost(CaptionConfig(model=folder))
    loaded = import_transformers_vision().AutoModelForImageTextToText.from_pretrained(folder)
    assert cost is not None and cost.parameters == loaded.num_parameters() > 0
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(UserError, match="does not describe images"):
        estimate_captioner_cost(CaptionConfig(model=folder))
