"""Which refinement and which diffusion stage are compared, and how sharp an image is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from benchmarks import vq
from train.models.backbones import build_denoiser, denoiser_config


def make_cascade(preset: str) -> Any:
    """A cascade of one stage at 64 pixels."""
    model = build_denoiser(denoiser_config(preset, {"text_dim": 8}))
    return SimpleNamespace(stages=[SimpleNamespace(entry=SimpleNamespace(resolution=64), model=model)])


def test_the_runs_own_stage_is_taken_where_it_is_one_of_diffusion(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train_stage(name: str) -> tuple[Path, float]:
        trained.append(name)
        return Path(name), 7.0

    bench = cast(vq.Bench, SimpleNamespace(train_stage=train_stage))
    monkeypatch.setattr(vq, "open_stage", lambda folder: folder)
    cascade = make_cascade("micro-sr")
    assert vq.find_diffusion_stage(bench, cascade) == (cascade.stages[0], 0.0) and not trained
    assert vq.find_diffusion_stage(bench, make_cascade("refiner-micro")) == (Path("diffusion/export"), 7.0)
    assert trained == ["diffusion"]


def test_so_is_a_refinement_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def train(name: str, *given: Any) -> tuple[Path, float]:
        trained.append(name)
        return Path(name), 7.0

    bench = cast(vq.Bench, SimpleNamespace(train_vq=train, train_refinement=train))
    monkeypatch.setattr(vq, "open_stage", lambda folder: folder)
    cascade = make_cascade("refiner-micro")
    assert vq.find_refinement_stage(bench, cascade) == (cascade.stages[0], 0.0) and not trained
    assert vq.find_refinement_stage(bench, make_cascade("micro-sr")) == (Path("refined/export"), 14.0)
    assert trained == ["vq64-refined", "refined"]


def test_an_edge_is_less_sharp_the_wider_it_is() -> None:
    sharp, *blurred = (torch.arange(64.0).sub(32).div(width).clamp(0, 1).expand(1, 3, 64, 64) for width in (1, 2, 8))
    found = [vq.measure_sharpness(image) / vq.measure_sharpness(sharp) for image in blurred]
    assert found == pytest.approx([2**-0.5, 8**-0.5])
