"""Fingerprints of the stage list: exactly which change makes which stages stale, and --keep."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.config import RunConfig
from pipeline.config_loading import load_config
from pipeline.execution import plan
from pipeline.execution.plan import cut_plan, plan_run
from pipeline.stages.base import StageConfig, pick
from pipeline.stages.graph import list_stages
from pipeline.store import fingerprint
from pipeline.store.artifact import Manifest
from pipeline.store.run import Run
from tests.helpers.paths import ROOT

SMOKE = str(ROOT / "configs" / "smoke.yaml")


def plan_fingerprints(config: RunConfig, tmp_path: Path) -> dict[str, str]:
    return {item.stage.name: item.fingerprint for item in plan_run(config, Run(str(tmp_path / "run")))}


def find_dependents(config: RunConfig, stages: set[str]) -> set[str]:
    """Returns ``stages`` and every stage that depends on them."""
    stale = set(stages)
    for stage in list_stages(config):
        if stale & set(stage.inputs):
            stale.add(stage.name)
    return stale


def list_leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields every leaf of the config with its path."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from list_leaves(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from list_leaves(inner, (*path, name))
    else:
        yield path, value


def change_value(value: Any) -> Any:
    """Returns another value of a similar type, without validation."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple | list):
        return [*value, "x"]
    return {"x": 1} if isinstance(value, dict) else "x"


def replace_leaf(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """Returns a copy of the config with the leaf at ``path`` replaced, without validation."""
    if not path:
        return value
    if isinstance(config, dict):
        return {**config, path[0]: replace_leaf(config[path[0]], path[1:], value)}
    return config.model_copy(update={path[0]: replace_leaf(getattr(config, path[0]), path[1:], value)})


def build_unchecked(cls: type[StageConfig], config: RunConfig, **given: Any) -> StageConfig:
    """Replaces `StageConfig.from_run`, without validation."""
    keys = {name: field.alias or name for name, field in cls.model_fields.items()}
    return cls.model_construct(**{name: pick(config, key) for name, key in keys.items() if name not in given} | given)


# Keys that fewer stages read than their section: the licence, and how often a caption is trained on.
LATER = {"listing.licence": {"card"}, "pack.captions.caption": {"train.base", "train.sr32", "train.sr64"}}


def find_readers(config: RunConfig, path: tuple[str, ...]) -> set[str]:
    """Returns the stages that read the key at ``path``."""
    key = ".".join(path)
    if key in LATER:
        return LATER[key]
    found = set()
    for stage in list_stages(config):
        fields = type(stage.config).model_fields.items()
        keys = {field.alias or (stage.name if name == "train" else name) for name, field in fields}
        if any(key == own or key.startswith(own + ".") for own in keys):
            found.add(stage.name)
    return found


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_config_key_makes_exactly_its_stages_and_dependents_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files at changed paths do not exist; this test is about the keys.
    monkeypatch.setattr(plan, "list_stages", lambda config: [replace(s, sources=None) for s in list_stages(config)])
    monkeypatch.setattr(StageConfig, "from_run", classmethod(build_unchecked))
    # The code does not change: follow it once.
    collect = functools.cache(lambda function, classes: fingerprint.collect_dependencies(function, classes))
    monkeypatch.setattr(plan, "collect_dependencies", lambda function, classes: collect(function, tuple(classes)))
    config = load_config(SMOKE)
    before = plan_fingerprints(config, tmp_path)
    seen = 0
    for path, value in list_leaves(config):
        if path in (("subject",), ("listing", "captions"), ("listing", "sources")):
            continue  # read by their form, which the changed value has not
        after = plan_fingerprints(replace_leaf(config, path, change_value(value)), tmp_path)
        if before.keys() != after.keys():
            continue  # adds a stage, which others then read
        stale = {name for name in before if before[name] != after[name]}
        expected = find_dependents(config, find_readers(config, path))
        assert stale == expected, f"{'.'.join(path)}: stale {sorted(stale)}, expected {sorted(expected)}"
        if path[0] not in ("run", "cluster", "caption"):  # the smoke run writes no captions
            assert expected, f"{'.'.join(path)}: no stage reads this key"
        seen += 1
    assert seen > 150


def test_a_threshold_makes_only_select_and_its_dependents_stale(tmp_path: Path) -> None:
    before = plan_fingerprints(load_config(SMOKE), tmp_path)
    for override in ("select.min_side=33", "clip.min_similarity=0.1"):
        after = plan_fingerprints(load_config(SMOKE, [override]), tmp_path)
        same = {name for name in before if before[name] == after[name]}
        assert same == {"listing", "download", "annotate", "encoder", "clip", "score"}


def test_every_reached_symbol_makes_exactly_its_stages_and_dependents_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(SMOKE)
    planned = plan_run(config, Run(str(tmp_path / "run")))
    before = {item.stage.name: item.fingerprint for item in planned}
    reach = {item.stage.name: set(item.parts.code) for item in planned}
    symbols = sorted(name for name in set().union(*reach.values()) if ":" in name)
    assert len(symbols) > 300
    original = fingerprint.parse_module
    # Every tenth symbol, and all of two small modules that are easily missed.
    chosen = [
        s
        for i, s in enumerate(symbols)
        if i % 10 == 0 or s.startswith(("dataprep.text.embedding_codec", "train.diffusion.schedules"))
    ]
    for symbol in chosen:
        module_name, _, name = symbol.partition(":")
        module = copy.copy(original(module_name))
        module.symbols = module.symbols | {name: fingerprint.Symbol("changed", module.symbols[name].uses)}
        changed = {module_name: module}
        monkeypatch.setattr(fingerprint, "parse_module", lambda n, c=changed: c.get(n) or original(n))
        after = plan_fingerprints(config, tmp_path)
        stale = {stage for stage in before if before[stage] != after[stage]}
        assert stale == find_dependents(config, {stage for stage in reach if symbol in reach[stage]}), symbol


def test_comments_and_docstrings_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(SMOKE)
    before = plan_fingerprints(config, tmp_path)
    code = [key for item in plan_run(config, Run(str(tmp_path))) for key in item.parts.code]
    modules = {key.partition(":")[0] for key in code if ":" in key}

    @functools.cache
    def add_comments(name: str) -> fingerprint.ParsedModule:
        file = fingerprint._find_source(name)
        assert file is not None
        source = "# a comment\n\n" + file.read_text().replace('"""', '"""Reworded. ', 1)
        return fingerprint.parse_source(source, name)

    assert len(modules) > 40
    monkeypatch.setattr(fingerprint, "parse_module", add_comments)
    assert plan_fingerprints(config, tmp_path) == before


def test_library_versions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(SMOKE)
    before = plan_fingerprints(config, tmp_path)
    original = fingerprint.list_versions
    monkeypatch.setattr(
        fingerprint, "list_versions", lambda modules: original(modules) | ({"t": "2"} if "imagehash" in modules else {})
    )
    after = plan_fingerprints(config, tmp_path)
    stale = {name for name in before if before[name] != after[name]}
    assert {"download", "annotate"} <= stale  # perceptual hashes, against lists of them too
    assert "listing" not in stale and "encoder" in stale  # which reads the download


def test_bytes_of_source_files_count(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("url,caption\nhttp://a.example/1.jpg,a cat\n")
    overrides = ["listing.source=table", f"listing.path={table}"]
    before = plan_fingerprints(load_config(SMOKE, overrides), tmp_path)
    assert plan_fingerprints(load_config(SMOKE, overrides), tmp_path) == before
    table.write_text("url,caption\nhttp://a.example/1.jpg,a cab\n")
    after = plan_fingerprints(load_config(SMOKE, overrides), tmp_path)
    assert all(before[name] != after[name] for name in before)


def test_fingerprints_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """Hashes of strings differ between processes; fingerprints must not."""
    import subprocess
    import sys

    code = (
        "import json, sys; from pipeline.config_loading import load_config;"
        "from pipeline.execution.plan import plan_run;"
        "from pipeline.store.run import Run;"
        "print(json.dumps({i.stage.name: i.fingerprint for i in plan_run(load_config(sys.argv[1]), Run(sys.argv[2]))}))"
    )
    arguments = [sys.executable, "-c", code, SMOKE, str(tmp_path / "run")]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert json.loads(printed) == plan_fingerprints(load_config(SMOKE), tmp_path)


def test_keep_accepts_a_change_of_code_only(tmp_path: Path) -> None:
    config, run = load_config(SMOKE), Run(str(tmp_path / "run"))
    fresh = plan_run(config, run)[0]
    older = fresh.parts.code | {"dataprep.synthetic.corpus:rows": "another tree"}
    manifest = Manifest("listing", "a" * 20, {}, fresh.parts.config, [], {}, 1.0, fresh.parts.versions, older)
    run.commit(manifest)
    storage.write_json(run.path("run.json"), {"stages": {"listing": {"finished": "a" * 20}}})
    item = plan_run(config, run)[0]
    assert item.artifact is None
    assert item.reason == "code changed: dataprep.synthetic.corpus:rows"
    kept = plan_run(config, run, keep=["listing"])
    assert kept[0].artifact is not None
    assert kept[0].fingerprint == "a" * 20
    assert kept[0].reason == "kept: code changed: dataprep.synthetic.corpus:rows"
    assert kept[1].parts.inputs == {"listing": "a" * 20}
    with pytest.raises(UserError, match=r"--keep listing: .* config changed: seed"):
        plan_run(load_config(SMOKE, ["seed=1"]), run, keep=["listing"])
    with pytest.raises(UserError, match=r"--keep download: .* never run"):
        plan_run(config, run, keep=["download"])


def test_keep_refuses_changed_source_files(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("url,caption\nhttp://a.example/1.jpg,a cat\n")
    config, run = load_config(SMOKE, ["listing.source=table", f"listing.path={table}"]), Run(str(tmp_path / "run"))
    parts = plan_run(config, run)[0].parts
    older, sources = parts.code | {"dataprep.synthetic.corpus:rows": "another tree"}, {str(table): "other bytes"}
    before = Manifest("listing", "a" * 20, {}, parts.config, [], {}, 1.0, parts.versions, older, sources)
    run.commit(before)
    storage.write_json(run.path("run.json"), {"stages": {"listing": {"finished": "a" * 20}}})
    assert plan_run(config, run)[0].reason == f"source files changed: {table}"
    with pytest.raises(UserError, match="--keep listing: only works for a change of code or library versions"):
        plan_run(config, run, keep=["listing"])


def test_templates_count_for_the_stages_that_read_them(tmp_path: Path) -> None:
    found = {item.stage.name: {*item.parts.code} for item in plan_run(load_config(SMOKE), Run(str(tmp_path / "run")))}
    files = {"pipeline/report/page.html.jinja", "pipeline/report/page.css"}
    assert files <= found["report"]
    assert not any(files & code for stage, code in found.items() if stage not in ("card", "report"))


def test_unknown_stage_names_are_refused(tmp_path: Path) -> None:
    config, run = load_config(SMOKE), Run(str(tmp_path))
    with pytest.raises(UserError, match="--until trian: no such stage; the stages are listing"):
        cut_plan(plan_run(config, run), "trian")
    with pytest.raises(UserError, match=r"--keep nothing"):
        plan_run(config, run, keep=["nothing"])
    assert [item.stage.name for item in cut_plan(plan_run(config, run), "select")][-1] == "select"
