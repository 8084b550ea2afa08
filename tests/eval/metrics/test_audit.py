"""The audit of samples: prompts, and what detectors, heads and labels see in first candidates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dataprep.images.faces import FacesConfig
from dataprep.images.text_area import TextConfig
from eval.clip.config import HeadConfig, ScoreConfig
from eval.metrics.audit import Audit, AuditConfig, ImageAuditor
from eval.metrics.base import JudgedSamples
from eval.metrics.samples_table import EVALUATE, JudgedSample
from tests.helpers.images import draw_face
from tests.helpers.scoring import make_scorer
from tests.helpers.text_networks import write_east_network


def sample(prompt: str, index: int = 0) -> JudgedSample:
    return JudgedSample(
        role=EVALUATE,
        prompt=prompt,
        split="user",
        language="en",
        claim=None,
        checks=None,
        seed=0,
        index=index,
        chosen=not index,
        stage="base",
        size=8,
        clip_score=0.0,
    )


def test_prompts_are_counted_once_and_rows_by_their_columns() -> None:
    samples = [sample(text, index) for text in ("a woman", "a man and a woman") for index in range(3)]
    config = AuditConfig(score=ScoreConfig(labels={"medium": ("a photo", "a map")}))
    rows = [{"faces": 2, "label_medium": "a map"}, {"faces": 0, "label_medium": "a map"}]
    found = Audit().compute(JudgedSamples(samples, audit=config, audited=rows))["audit"]
    assert (found["captions"], found["people"]["women"], found["people"]["men"]) == (2, 2, 1)
    assert found["faces"] == {"0": 1, "2": 1}
    assert found["labels"] == {"medium": {"a photo": 0, "a map": 2}}


def test_nothing_to_audit_is_no_key() -> None:
    assert Audit().compute(JudgedSamples([])) == {}
    found = Audit().compute(JudgedSamples([], audit=AuditConfig(), audited=[{"faces": 1}]))["audit"]
    assert found["captions"] == 0 and found["faces"] == {"1": 1}  # images without prompts


def test_images_are_measured_as_training_images_are(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([[10.0, 0.0, 0.0]])}, tmp_path / "head.pt")
    score = ScoreConfig(
        heads={"aesthetic": HeadConfig(path=str(tmp_path / "head.pt"))}, labels={"colour": ("100", "001")}
    )
    text = TextConfig(model=str(write_east_network(tmp_path / "east.onnx")), detector="east", side=160)
    auditor = ImageAuditor(AuditConfig(faces=FacesConfig(), text=text, score=score), make_scorer())
    face = np.full((160, 160, 3), (20, 30, 90), np.uint8)
    face[30:126, 30:126] = draw_face(96)
    red = np.full((160, 160, 3), (20, 30, 90), np.uint8)
    red[:, :80] = (255, 0, 0)
    rows = auditor.measure([face, red])
    assert [row["faces"] for row in rows] == [1, 0]
    assert rows[1]["text_area"] == pytest.approx(0.5, abs=0.02)
    assert rows[1]["label_colour"] == "100" and rows[1]["aesthetic"] == pytest.approx(9.4, abs=0.2)
    assert auditor.measure([]) == []


def test_what_is_not_looked_for_is_no_column() -> None:
    config = AuditConfig()
    assert not config.looks and not config.needs_clip
    assert ImageAuditor(config, None).measure([np.zeros((8, 8, 3), np.uint8)]) == [{}]
