"""YAML, overrides, and one helpful line for what is wrong in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config, parse_yaml
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def test_overrides_reach_any_depth() -> None:
    overrides = ["clip.min_similarity=0.25", "train.base.steps=7", "select.languages=[en, zh]", "run=s3://bucket/x"]
    config = load_config(SMOKE, overrides)
    assert config.clip.min_similarity == 0.25
    assert config.train["base"].steps == 7
    assert config.select.languages == ("en", "zh")
    assert config.run == "s3://bucket/x"


def test_a_ratio_is_not_a_number_to_the_base_of_sixty() -> None:
    config = load_config(SMOKE, ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=4"])
    assert config.pack.aspects == ("1:1", "4:3")
    assert config.pack.shapes(64) == {"1:1": (64, 64), "4:3": (48, 64)}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1e5", -100000.0),
        ("1.5e3", 1500.0),
        ("4:3", "4:3"),
        ("0x10", 16),
        ("1_000", 1000),
        ("010", "010"),
        ("yes", True),
        ("~", None),
        ("{a: &x {b: 1}, c: {<<: *x, d: 2}}", {"a": {"b": 1}, "c": {"b": 1, "d": 2}}),
    ],
)
def test_scalars_and_merge_keys(text: str, value: Any) -> None:
    parsed = parse_yaml(text, "text")
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selct.min_side=3", ["selct", "did you mean select?"]),
        ("select.min_sid=3", ["select.min_sid=3", "did you mean min_side?"]),
        ("train.base.stepz=3", ["train.base.stepz=3", "did you mean steps?"]),
        ("sample.stages.base.stepz=3", ["sample.stages.base.stepz=3", "did you mean steps?"]),
        ("encoder.pretrain.stepz=3", ["encoder.pretrain.stepz=3", "did you mean steps?"]),
        ("listing.scenes.trouble.dead=0.1", ["listing.scenes.trouble.dead", "unknown key"]),
        ("seed.x=1", ["seed.x", "no keys below it"]),
        ("justtext", ["key=value"]),
        ("seed=[1", ["not valid YAML"]),
    ],
)
def test_a_wrong_override_gives_one_line_that_helps(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(SMOKE, [override])
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["mapping of sections"]),
        ("- a\n- b\n", ["mapping of sections"]),
        ("run: [\n", ["line", "not valid YAML"]),
        ("run: a\nseed: 0\nrun: b\n", ["run", "given twice (line 3)"]),
        ("run: a\nclip: {x: 1, x: 2}\n", ["x: given twice (line 2)"]),
        ("run: a\n", ["listing", "missing"]),
    ],
)
def test_a_wrong_file_gives_one_line_that_helps(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(str(path))
    for word in words:
        assert word in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CONFIG=.*: a folder; give the YAML file in it"):
        load_config(tmp_path)
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config("nowhere.yaml")
