"""YAML, overrides, and one helpful line for what is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataprep.io.errors import UserError
from pipeline.config_loading import load_config
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


TEXTS = (
    "#1 set",
    "a: b",
    "[x",
    "*x",
    "&x",
    "!x",
    "{x",
    "- x",
    "@x",
    "%x",
    "`x",
    "a #1",
    "no",
    "12",
    "1e3",
    "a = b",
    "2024-01-01",
)


@pytest.mark.parametrize("text", TEXTS)
def test_a_key_that_takes_a_text_takes_any(text: str) -> None:
    for written in (text, f"  {text} ", f'"{text}"', f"'{text}'"):
        assert load_config(SMOKE, [f"card.title={written}"]).card.title == text
    assert load_config(SMOKE, [f"run={text}"]).run == text


def test_only_quotes_and_null_have_a_meaning_in_a_text() -> None:
    for text, value in [
        ("null", None),
        ("~", None),
        ("", None),
        ('"null"', "null"),
        ("none", "none"),
        ('"a" b', '"a" b'),
    ]:
        assert load_config(SMOKE, ["card.title=before", f"card.title={text}"]).card.title == value
    assert load_config(SMOKE, ["run=null"]).run == "null"
    config = load_config(SMOKE, ["download.resize_mode=no", "train.base.wandb=off", "pack.encoding=png"])
    assert config.download.resize_mode == "no" and config.train["base"].wandb == "off"


def test_words_of_a_file_are_texts(tmp_path: Path) -> None:
    text = Path(SMOKE).read_text().replace("select:", "card: {title: no}\nselect:\n  languages: [no, en]")
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml")
    assert config.card.title == "no" and config.select.languages == ("no", "en")


def test_words_are_booleans_where_a_key_takes_these(tmp_path: Path) -> None:
    text = Path(SMOKE).read_text().replace("download:", "download:\n  fetch: {obey_robots_txt: no}")
    (tmp_path / "c.yaml").write_text(text)
    config = load_config(tmp_path / "c.yaml", ["download.resize_only_if_bigger=yes", "train.base.compile=on"])
    assert config.download.fetch.obey_robots_txt is False and config.download.resize_only_if_bigger is True
    assert config.train["base"].compile is True
    with pytest.raises(UserError, match=r"download.resize_only_if_bigger='maybe': input should be a valid boolean"):
        load_config(SMOKE, ["download.resize_only_if_bigger=maybe"])
    with pytest.raises(UserError, match=r"train.base.compile='maybe': input should be 'auto', True or False"):
        load_config(SMOKE, ["train.base.compile=maybe"])


def test_a_folder_is_no_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"CONFIG=.*: is a folder; give the path of a YAML config"):
        load_config(tmp_path)
    with pytest.raises(UserError, match=r"CONFIG .*: not UTF-8"):
        load_config("caf\udce9.yaml")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("selct.min_side=3", ["selct", "did you mean select?"]),
        ("select.min_sid=3", ["select.min_sid=3", "did you mean min_side?"]),
        ("train.base.stepz=3", ["train.base.stepz=3", "did you mean steps?"]),
        ("sample.stages.base.stepz=3", ["sample.stages.base.stepz=3", "did you mean steps?"]),
        ("encoder.pretrain.stepz=3", ["encoder.pretrain.stepz=3", "did you mean steps?"]),
        ("encoder.pretrain.task=gpt", ["encoder.pretrain: task=gpt is unknown; take one of t5, bert"]),
        ("encoder.pretrain={task: bert, sentinelz: 3}", ["encoder.pretrain.sentinelz=3", "did you mean sentinels?"]),
        ("listing.scenes.trouble.dead=0.1", ["listing.scenes.trouble.dead", "unknown key"]),
        ("seed.x=1", ["seed.x", "no keys below it"]),
        ("justtext", ["key=value"]),
        ("seed=[1", ["not valid YAML"]),
        ("seed=#1", ["# begins a comment", "quote it"]),
        ("seed=9223372036854775808", ["seed", "9223372036854775807"]),
        ("card.title=caf\udce9", ["override", "not UTF-8 at character 14"]),
        ("sample.prompts=[#1 dad mug]", ["not valid YAML"]),
        ("sample.prompts=a cat", ["sample.prompts", "list"]),
        ("run=", ["run"]),
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
