"""Mixtures of variants, the screening's design, effects with known answers, and a whole tiny training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import ablation
from benchmarks.ablation import (
    BASE,
    RECIPE,
    VARIANTS,
    compare_mixtures,
    design_screening,
    fit_effects,
    mix_config,
    read_variant,
    run_row,
)
from dataprep.io.errors import UserError
from pipeline.config_loading import load_config

NAMES = [f"v{number:02d}" for number in range(11)]


def make_row(mixture: str, seen: float, seed: int = 0) -> dict[str, Any]:
    accuracy = {"all": seen, "relation": 0.5, "shape": 0.5}
    errors = {"-6": 0.1, "0": 0.01}
    row = {
        "mixture": mixture,
        "budget": 1e12,
        "seed": seed,
        "steps": 7,
        "seen": accuracy,
        "heldout": accuracy,
        "en": 0.5,
        "zh": 0.4,
    }
    return row | {"error_validation": errors}


@pytest.mark.parametrize("path", sorted(VARIANTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_is_a_valid_config_and_changes_something(path: Path) -> None:
    over_recipe = (
        "over `demo`" in read_variant(path.stem)["about"]
    )  # of another network, which the base's keys do not fit
    before = RECIPE if over_recipe or path.stem == BASE else BASE
    assert mix_config(f"{RECIPE}+{path.stem}" if over_recipe else path.stem) != mix_config(before)


def test_the_recipe_is_the_demo_as_it_is() -> None:
    assert mix_config(RECIPE) == load_config(ablation.DEMO)


def test_a_mixture_has_the_changes_of_each() -> None:
    mixed, plain = mix_config("related+text_layers"), mix_config(BASE)
    assert mixed.listing.scenes is not None and mixed.listing.scenes.related_share == 0.6
    assert mixed.cascade()["base"].model_overrides["text_layers"] == 4
    assert plain.listing.scenes is not None and mixed.listing.scenes.count == plain.listing.scenes.count
    assert mix_config("text_layers+related") == mixed and mix_config("base+related") == mix_config("related")


def test_wrong_variants_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"variant 'relatedd': there is no .*take base, some of .*related.*, or a mixtur"
    ):
        mix_config("relatedd")
    for name, text in {
        "base": "about: x\nchanges: {}",
        "one": "about: x\nchanges: {seed: 1}",
        "two": "about: x\nchanges: {seed: 2}",
        "odd": "changes: {seed: 2}",
        "wrong": "about: x\nchanges: {train: {base: {stepz: 2}}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(ablation, "VARIANTS", tmp_path)
    with pytest.raises(UserError, match="one and two both change seed; take one of them"):
        mix_config("one+two")
    with pytest.raises(UserError, match=r"odd\.yaml: a variant has the keys about and changes"):
        mix_config("odd")
    with pytest.raises(UserError, match="stepz"):
        mix_config("wrong")
    with pytest.raises(UserError, match="12 variants, the design has room for 11"):
        design_screening([*NAMES, "more"])


def test_the_design_is_orthogonal() -> None:
    mixtures = [set(mixture.split("+")) for mixture in design_screening(NAMES)]
    assert len(mixtures) == 12 and mixtures[-1] == {BASE}
    signs = np.array([[1 if name in mixture else -1 for name in NAMES] for mixture in mixtures])
    assert np.array_equal(signs.T @ signs, 12 * np.eye(11)) and not signs.sum(0).any()
    few = [set(mixture.split("+")) for mixture in design_screening(NAMES[:7], ["more"])]
    signs = np.array([[1 if name in mixture else -1 for name in NAMES[:7]] for mixture in few])
    assert np.array_equal(signs.T @ signs, 8 * np.eye(7)) and all("more" in mixture for mixture in few)


def test_effects_of_a_screening_are_those_that_made_it() -> None:
    effects = dict(zip(NAMES[:5], [0.2, -0.1, 0.0, 0.05, -0.3], strict=True))
    noise = np.random.default_rng(0).normal(0, 0.01, 8)
    rows = [
        make_row(mixture, 0.5 + sum(effects.get(name, 0) for name in mixture.split("+")) + float(error))
        for mixture, error in zip(design_screening(list(effects)), noise, strict=True)
    ]
    found = fit_effects(rows, lambda row: row["seen"]["all"])
    assert [entry["variant"] for entry in found] == sorted(effects)
    for entry in found:
        assert entry["effect"] == pytest.approx(effects[entry["variant"]], abs=0.03)
        assert entry["low"] < entry["effect"] < entry["high"] and 0.005 < entry["high"] - entry["low"] < 0.1
        assert entry["rows"] == 4


def test_effects_without_spare_rows_have_no_interval_and_aliases_no_effect() -> None:
    rows = [make_row(BASE, 0.5), make_row("a", 0.7)]
    (only,) = fit_effects(rows, lambda row: row["seen"]["all"])
    assert only["effect"] == pytest.approx(0.2) and only["low"] is None and only["high"] is None
    assert fit_effects([make_row(BASE, 0.5), make_row("a+b", 0.7)], lambda row: row["seen"]["all"]) == []


def test_effects_are_those_at_one_number_of_operations() -> None:
    rows = [make_row(BASE, 0.5), make_row("a", 0.7), make_row("a", 0.9) | {"budget": 2e12}]
    found = [entry for entry in ablation.fit_all(rows) if entry["measure"] == "all, seen"]
    assert [(entry["operations"], entry["variant"], entry["effect"]) for entry in found] == [(1e12, "a", 0.2)]


def test_mixtures_are_compared_over_seeds_the_best_first() -> None:
    rows = [make_row(BASE, 0.4, 0), make_row(BASE, 0.6, 1), make_row("a", 0.9)]
    longest, best, base = compare_mixtures([*rows, make_row(BASE, 0.3) | {"budget": 2e12}])
    assert (longest["operations"], longest["mixture"], longest["all, seen"]) == (2e12, BASE, 0.3)
    assert (best["mixture"], base["mixture"], base["seeds"]) == ("a", BASE, 2)
    assert base["all, seen"] == pytest.approx(0.5) and base["worst, seen"] == 0.4


@pytest.mark.slow  # trains a text encoder and a network
def test_a_row_is_trained_once_at_the_given_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo = {
        "run": "runs/tiny",
        "clip": {"train": {"steps": 1}},
        "listing": {"source": "scenes", "scenes": {"count": 60, "image_size": 64}},
        "encoder": {"pretrain": {"d_model": 32, "layers": 1, "steps": 3, "batch_size": 8}},
        "train": {"base": {"resolution": 16, "model": "micro-base", "model_overrides": {"head_width": 16}, "steps": 9}},
        "sample": {"stages": {"base": {"steps": 2}}},
    }
    (tmp_path / "demo.yaml").write_text(json.dumps(demo))
    monkeypatch.setattr(ablation, "DEMO", tmp_path / "demo.yaml")
    row = run_row("muon", 0, tmp_path / "lab", 2.4e11, 4)
    assert 2e11 < row["flops"] < 2.45e11 and 0 < row["encoder_flops"] < row["flops"] and row["steps"] > 3
    assert set(row["error_validation"]) == set(row["error_train"]) == {"-6", "-3", "0", "3"}
    assert 0 <= row["seen"]["all"] <= 1 and row["mixture"] == "muon" and "zh" in row
    path = next((tmp_path / "lab" / "rows").iterdir())
    path.write_text(path.read_text().replace(f'"steps": {row["steps"]}', '"steps": 12345'))
    assert run_row("muon", 0, tmp_path / "lab", 2.4e11, 4)["steps"] == 12345  # read, not trained again
    assert [found["steps"] for found in ablation.read_rows(tmp_path / "lab")] == [12345]
