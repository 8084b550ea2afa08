"""The strict config: what it takes, and one useful line for what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.schema import UserError
from pipeline.config import load_config, pick

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "configs" / "smoke.yaml")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_config_that_we_ship_is_valid(name: str) -> None:
    assert load_config(str(ROOT / "configs" / name)).train


def test_overrides_reach_any_depth() -> None:
    config = load_config(
        SMOKE, ["clip.min_similarity=0.25", "train.base.steps=7", "select.languages=[en, zh]", "run=s3://bucket/x"]
    )
    assert pick(config, "clip.min_similarity") == 0.25
    assert pick(config, "train.base").steps == 7
    assert config.select.languages == ("en", "zh")
    assert config.run == "s3://bucket/x"


def test_a_ratio_is_no_number_to_the_base_of_sixty() -> None:
    config = load_config(SMOKE, ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=4"])
    assert config.pack.aspects == ("1:1", "4:3")
    assert config.pack.shapes(64) == {"1:1": (64, 64), "4:3": (48, 64)}
    assert load_config(SMOKE, ["seed=0x10"]).seed == 16 and load_config(SMOKE, ["seed=1_000"]).seed == 1000


def test_a_float_without_a_point_is_a_float() -> None:
    assert load_config(SMOKE, ["train.base.learning_rate=1e-3"]).train["base"].learning_rate == 0.001


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selct.min_side=3", ["selct", "did you mean select?"]),
        ("select.min_sid=3", ["select.min_sid=3", "did you mean min_side?"]),
        ("train.base.stepz=3", ["train.base.stepz=3", "did you mean steps?"]),
        ("listing.scenes.trouble.dead=0.1", ["listing.scenes.trouble.dead", "unknown key"]),
        ("select.min_side=big", ["select.min_side='big'", "valid integer"]),
        ("select.max_aspect=0.5", ["select.max_aspect=0.5", "greater than or equal to 1"]),
        ("select.min_side=1.5", ["select.min_side=1.5", "integer"]),
        ("seed=-1", ["seed=-1"]),
        ("encoder.model=google/t5-v1_1-small", ["encoder", "exactly one"]),
        ("clip.min_similarity=2", ["clip.min_similarity=2"]),
        ("pack.resolutions=[16]", ["pack.resolutions=[16]", "train.sr32 needs 32"]),
        ("pack.aspects=[4:3, 4:3]", ["pack", "'4:3' is no ratio or stands twice"]),
        ("pack.aspects=[wide]", ["pack", "'wide' is no ratio"]),
        ("pack.aspects=[1:1, 4:3]", ["4:3 and 1:1 are both 16x16 at resolution 16", "lower aspect_multiple"]),
        ("train.sr32.low_resolution=8", ["train.sr32.low_resolution=8", "set it to 16"]),
        ("sample.stages.sr1024.steps=3", ["sr1024", "base, sr32, sr64"]),
        ("sample.evaluate_at=top", ["top", "base, sr32, sr64"]),
        ("evaluate.sweep.stage=top", ["top", "base, sr32, sr64"]),
        ("evaluate.subsample=3", ["evaluate.subsample=3"]),
        ("train.base.model=big", ["train.base", "big", "micro-base"]),
        ("listing.source=table", ["listing", "path"]),
        ("train={}", ["train", "at least one stage"]),
        ("cluster.ranks=3", ["train.base.batch_size=8", "cluster.ranks=3"]),
        ("train.base.batch_size=7", ["train.base.batch_size=7", "cluster.ranks=2"]),
        ("seed.x=1", ["seed.x", "no keys below it"]),
        ("justtext", ["key=value"]),
        ("seed=[1", ["not valid YAML"]),
    ],
)
def test_a_wrong_value_gives_one_line_that_helps(override: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        load_config(SMOKE, [override])
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_a_bucket_that_a_stage_cannot_take_is_named() -> None:
    buckets = ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=3"]
    with pytest.raises(UserError, match=r"1:1 is 15x15 .*train.base needs multiples of 2; set .* multiple of 2"):
        load_config(SMOKE, buckets)
    with pytest.raises(UserError, match=r"4:3 is 64x48 at resolution 64, and train.sr64.crop=64; take a smaller crop"):
        load_config(SMOKE, ["pack.aspects=[1:1, 4:3]", "pack.aspect_multiple=4", "train.sr64.crop=64"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["mapping of sections"]),
        ("- a\n- b\n", ["mapping of sections"]),
        ("run: [\n", ["line", "not valid YAML"]),
        ("run: a\nrun: b\n", ["run", "given twice"]),
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


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml: no such file"):
        load_config("nowhere.yaml")
