"""Costs of text encoders, by the sizes in their folders."""

from __future__ import annotations

from pathlib import Path

from pipeline.planner.encoders import estimate_text_cost
from pipeline.stages.text_encoder import EncoderConfig
from tests.helpers.encoders import save_encoder


def test_the_encoder_of_a_folder_in_diffusers_layout(tmp_path: Path) -> None:
    save_encoder(tmp_path / "text_encoder", "t5")
    alone = estimate_text_cost(EncoderConfig(model=str(tmp_path / "text_encoder")))
    (tmp_path / "model_index.json").write_text("{}")
    inside = estimate_text_cost(EncoderConfig(model=str(tmp_path)))
    assert (inside.width, inside.layers, inside.parameters) == (alone.width, alone.layers, alone.parameters)
    assert inside.width == 32 and inside.layers == 2
