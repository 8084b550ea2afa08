"""The config of the heads: ordered, checked against `HEADS`, and light to import."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import ValidationError

from dataprep.io.scorer_heads import HEADS
from eval.clip.config import HeadConfig, ScoreConfig
from tests.helpers.paths import ROOT

HEAVY = ("torch", "open_clip", "transformers", "scipy", "numpy", "cv2", "pyarrow", "ray")


def test_heads_are_in_the_order_of_the_registry() -> None:
    head = HeadConfig(path="weights.pt")
    config = ScoreConfig(heads=dict.fromkeys(reversed(HEADS), head))
    assert list(config.heads) == list(HEADS)


def test_unknown_head_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="head 'beauty' is unknown; take one of aesthetic, nsfw, watermark"):
        ScoreConfig(heads={"beauty": HeadConfig(path="weights.pt")})


@pytest.mark.parametrize("module", ["eval.clip.config", "eval.metrics.config", "eval.sampling.config"])
def test_config_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY!r} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []
