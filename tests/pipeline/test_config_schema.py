"""The schema that editors read says what the config classes say."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from dataprep.io.yaml_text import parse_yaml
from pipeline.config_schema import SCHEMA_FILE, config_schema
from tests.helpers.paths import ROOT

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_the_file_is_up_to_date() -> None:
    written = json.loads((ROOT / SCHEMA_FILE).read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(config_schema())), "run `make schema`"


def test_every_key_has_a_description_and_every_optional_one_a_default() -> None:
    schema = config_schema()
    for name, definition in [("RunConfig", schema), *schema["$defs"].items()]:
        for key, value in definition["properties"].items():
            assert value.get("description"), f"{name}.{key}"
            is_section = "$ref" in value
            assert is_section or "default" in value or key in definition["required"], f"{name}.{key}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_name_the_schema_and_follow_it(path: Path) -> None:

    text = path.read_text(encoding="utf-8")
    assert text.splitlines()[0] == "# yaml-language-server: $schema=schema.json"
    jsonschema.validate(parse_yaml(text, str(path)), config_schema())


def test_a_misspelt_key_breaks_the_schema() -> None:
    tree = parse_yaml(CONFIGS[0].read_text(encoding="utf-8"), "config")
    with pytest.raises(jsonschema.ValidationError, match="min_sied"):
        jsonschema.validate(tree | {"select": {"min_sied": 3}}, config_schema())
