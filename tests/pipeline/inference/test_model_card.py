"""The model card: front matter, and text from outside that stays in its place."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from dataprep.text.learned_tokens import save_tokens
from eval.sampling.config import CascadeConfig, StageEntry
from pipeline.inference import model_card
from pipeline.inference.model_card import NO_LICENCE, render_model_card
from pipeline.stages.initial_weights import Origin
from pipeline.store.run import Run
from tests.helpers.runs import Made


def render_partly(run: Run, monkeypatch: pytest.MonkeyPatch, licence: str | None) -> str:
    """The card of a run without what describes the export."""
    for name in ("_describe_use", "_describe_parts", "_describe_limits"):
        monkeypatch.setattr(model_card, name, lambda *_: [])
    config = CascadeConfig(stages=[StageEntry(name="base", resolution=8, path="base")], encoder="encoder")
    return render_model_card(run, config, Path("nowhere"), "ema", licence)


def test_front_matter_is_yaml_whatever_the_licence_is_called(
    finished_run: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = render_partly(finished_run.run, monkeypatch, "mit: or not")
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["license"] == "mit: or not" and metadata["library_name"] == "imagen-ray"
    assert "base_model" not in metadata  # the encoder is in the export


def test_card_names_data_metrics_and_a_missing_licence(finished_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    text = render_partly(finished_run.run, monkeypatch, None)
    assert NO_LICENCE in text and "license" not in text.split("---\n")[1]
    assert "11 image-caption pairs, kept of 13 rows." in text
    assert "## Metrics" in text


def test_card_has_the_audit_of_data_and_samples(finished_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "## Audit" not in render_partly(finished_run.run, monkeypatch, None)  # zebras, and nothing looked for
    found = {"captions": 4, "people": {"women": 2}, "faces": {"0": 1, "1": 3}}
    read = model_card._read_json
    monkeypatch.setattr(
        model_card,
        "_read_json",
        lambda path: read(path) | ({"audit": found} if path.endswith("metrics.json") else {}),
    )
    text = render_partly(finished_run.run, monkeypatch, None)
    assert "## Audit" in text and "Faces:" in text
    assert "| women | 0 | 0.0% | 2 | 50.0% |" in text and "| 1 |  |  | 3 | 75.0% |" in text


def test_card_names_the_words_that_the_encoder_learned(tmp_path: Path) -> None:
    assert model_card._describe_words(tmp_path) == []
    save_tokens(tmp_path / "learned_tokens.safetensors", {"zwx": torch.ones(4), "qpt": torch.ones(4)})
    assert model_card._describe_words(tmp_path) == ["Words that it learned: qpt, zwx."]


def test_card_says_what_a_stage_began_from(finished_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    place = "hf://owner/if"
    origin = asdict(Origin(source=place, path=place, weights="ema", licence="openrail"))
    found = {"train.base": origin}
    monkeypatch.setattr(model_card, "read_origin", lambda artifact: found.get(artifact.manifest.stage))
    card = render_partly(finished_run.run, monkeypatch, None)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == ["owner/if"]
    assert "## Began from" in card and "hf://owner/if, ema weights, licence openrail" in card
    found.clear()
    assert "Began from" not in render_partly(finished_run.run, monkeypatch, None)
