"""Fingerprints of the whole stage list: what makes which stage stale, and that nothing else does."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dataprep import storage
from dataprep.schema import UserError
from pipeline import executor, fingerprint
from pipeline.config import RunConfig, load_config
from pipeline.executor import execute, plan, up_to
from pipeline.stages import stages
from pipeline.store import Manifest, Run

ROOT = Path(__file__).resolve().parents[2]
SMOKE = str(ROOT / "configs" / "smoke.yaml")


def fingerprints(config: RunConfig, tmp_path: Path) -> dict[str, str]:
    return {item.stage.name: item.fingerprint for item in plan(config, Run(str(tmp_path / "run")))}


def downstream(config: RunConfig, owners: set[str]) -> set[str]:
    """The stages in ``owners`` and all that depend on them."""
    stale = set(owners)
    for stage in stages(config):
        if stale & set(stage.inputs):
            stale.add(stage.name)
    return stale


def leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every leaf of the config with its path."""
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from leaves(getattr(value, name), (*path, name))
    elif isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path, value


def mutated(value: Any) -> Any:
    """Another value of about the same type; no validation sees it, only the fingerprint."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, tuple | list):
        return [*value, "x"]
    return {"x": 1} if isinstance(value, dict) else "x"


def replaced(config: Any, path: tuple[str, ...], value: Any) -> Any:
    """A copy of the config with the leaf at ``path`` replaced, unchecked."""
    if not path:
        return value
    if isinstance(config, dict):
        return {**config, path[0]: replaced(config[path[0]], path[1:], value)}
    return config.model_copy(update={path[0]: replaced(getattr(config, path[0]), path[1:], value)})


def owners(config: RunConfig, path: tuple[str, ...]) -> set[str]:
    key = ".".join(path)
    return {s.name for s in stages(config) if any(key == own or key.startswith(own + ".") for own in s.config)}


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_every_config_key_makes_its_stages_and_what_follows_stale_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files that a mutated path would name are not there; the keys themselves are what is tested here.
    monkeypatch.setattr(executor, "stages", lambda config: [replace(stage, sources=None) for stage in stages(config)])
    # The code does not change meanwhile: it is followed once.
    followed = functools.cache(lambda function, classes: fingerprint.reached(function, classes))
    monkeypatch.setattr(executor, "reached", lambda function, classes: followed(function, tuple(classes)))
    config = load_config(SMOKE)
    before = fingerprints(config, tmp_path)
    seen = 0
    for path, value in leaves(config):
        after = fingerprints(replaced(config, path, mutated(value)), tmp_path)
        stale = {name for name in before if before[name] != after[name]}
        expected = downstream(config, owners(config, path))
        assert stale == expected, f"{'.'.join(path)}: stale {sorted(stale)}, expected {sorted(expected)}"
        if path[0] not in ("run", "cluster"):
            assert expected, f"{'.'.join(path)}: no stage reads this key"
        seen += 1
    assert seen > 150


def test_one_threshold_reruns_select_and_what_depends_on_it_alone(tmp_path: Path) -> None:
    before = fingerprints(load_config(SMOKE), tmp_path)
    for override in ("select.min_side=33", "clip.min_similarity=0.1"):
        after = fingerprints(load_config(SMOKE, [override]), tmp_path)
        same = {name for name in before if before[name] == after[name]}
        assert same == {"listing", "download", "annotate", "encoder", "clip", "score"}


def test_every_reached_symbol_makes_its_stages_stale_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(SMOKE)
    planned = plan(config, Run(str(tmp_path / "run")))
    before = {item.stage.name: item.fingerprint for item in planned}
    reach = {item.stage.name: set(item.parts["code"]) for item in planned}
    symbols = sorted(name for name in set().union(*reach.values()) if ":" in name)
    assert len(symbols) > 300
    original = fingerprint.parse
    # Every tenth symbol, and all of the small modules whose change is the easiest to miss.
    chosen = [
        s for i, s in enumerate(symbols) if i % 10 == 0 or s.startswith(("dataprep.codec", "train.diffusion.schedules"))
    ]
    for symbol in chosen:
        module_name, _, name = symbol.partition(":")
        module = copy.deepcopy(original(module_name))
        module.symbols[name] = fingerprint.Symbol("changed", module.symbols[name].uses)
        monkeypatch.setattr(fingerprint, "parse", lambda n, m=module, w=module_name: m if n == w else original(n))
        after = fingerprints(config, tmp_path)
        stale = {stage for stage in before if before[stage] != after[stage]}
        assert stale == downstream(config, {stage for stage in reach if symbol in reach[stage]}), symbol


def test_comments_and_docstrings_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(SMOKE)
    before = fingerprints(config, tmp_path)
    code = [key for item in plan(config, Run(str(tmp_path))) for key in item.parts["code"]]
    modules = {key.partition(":")[0] for key in code if ":" in key}

    @functools.cache
    def commented(name: str) -> fingerprint.Module:
        file = fingerprint._file(name)
        assert file is not None
        source = "# a comment\n\n" + file.read_text().replace('"""', '"""Reworded. ', 1)
        return fingerprint.parse_source(source, name)

    assert len(modules) > 40
    monkeypatch.setattr(fingerprint, "parse", commented)
    assert fingerprints(config, tmp_path) == before


def test_library_versions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(SMOKE)
    before = fingerprints(config, tmp_path)
    original = fingerprint.versions
    monkeypatch.setattr(
        fingerprint, "versions", lambda modules: original(modules) | ({"t": "2"} if "imagehash" in modules else {})
    )
    after = fingerprints(config, tmp_path)
    stale = {name for name in before if before[name] != after[name]}
    assert "annotate" in stale
    assert "download" not in stale


def test_input_bytes_count(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("url,caption\nhttp://a.example/1.jpg,a cat\n")
    overrides = ["listing.source=table", f"listing.path={table}"]
    before = fingerprints(load_config(SMOKE, overrides), tmp_path)
    assert fingerprints(load_config(SMOKE, overrides), tmp_path) == before
    table.write_text("url,caption\nhttp://a.example/1.jpg,a cab\n")
    after = fingerprints(load_config(SMOKE, overrides), tmp_path)
    assert all(before[name] != after[name] for name in before)


def test_fingerprints_do_not_depend_on_the_process(tmp_path: Path) -> None:
    """String hashing differs between processes; a fingerprint must not."""
    import subprocess
    import sys

    code = (
        "import json, sys; from pipeline.config import load_config; from pipeline.executor import plan;"
        "from pipeline.store import Run;"
        "print(json.dumps({i.stage.name: i.fingerprint for i in plan(load_config(sys.argv[1]), Run(sys.argv[2]))}))"
    )
    arguments = [sys.executable, "-c", code, SMOKE, str(tmp_path / "run")]
    printed = subprocess.run(arguments, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert json.loads(printed) == fingerprints(load_config(SMOKE), tmp_path)


def test_a_finished_stage_is_kept_over_a_change_of_code_alone(tmp_path: Path) -> None:
    config, run = load_config(SMOKE), Run(str(tmp_path / "run"))
    fresh = plan(config, run)[0]
    older = fresh.parts["code"] | {"dataprep.scenes:rows": "another tree"}
    manifest = Manifest("listing", "a" * 20, {}, fresh.parts["config"], [], {}, 1.0, fresh.parts["versions"], older)
    run.commit(manifest)
    storage.write_json(run.path("run.json"), {"stages": {"listing": {"finished": "a" * 20}}})
    item = plan(config, run)[0]
    assert item.artifact is None
    assert item.reason == "code changed: dataprep.scenes:rows"
    kept = plan(config, run, keep=["listing"])
    assert kept[0].artifact is not None
    assert kept[0].fingerprint == "a" * 20
    assert kept[0].reason == "kept over: code changed: dataprep.scenes:rows"
    assert kept[1].parts["inputs"] == {"listing": "a" * 20}
    with pytest.raises(UserError, match=r"--keep listing: .* config changed: seed"):
        plan(load_config(SMOKE, ["seed=1"]), run, keep=["listing"])
    with pytest.raises(UserError, match=r"--keep download: .* never run"):
        plan(config, run, keep=["download"])


def test_no_stage_is_kept_over_other_source_files(tmp_path: Path) -> None:
    table = tmp_path / "list.csv"
    table.write_text("url,caption\nhttp://a.example/1.jpg,a cat\n")
    config, run = load_config(SMOKE, ["listing.source=table", f"listing.path={table}"]), Run(str(tmp_path / "run"))
    parts = plan(config, run)[0].parts
    older, sources = parts["code"] | {"dataprep.scenes:rows": "another tree"}, {str(table): "other bytes"}
    before = Manifest("listing", "a" * 20, {}, parts["config"], [], {}, 1.0, parts["versions"], older, sources)
    run.commit(before)
    storage.write_json(run.path("run.json"), {"stages": {"listing": {"finished": "a" * 20}}})
    assert plan(config, run)[0].reason == f"source files changed: {table}"
    with pytest.raises(UserError, match="--keep listing: kept over a change of code or library versions alone"):
        plan(config, run, keep=["listing"])


def test_templates_count_where_they_are_read(tmp_path: Path) -> None:
    found = {item.stage.name: {*item.parts["code"]} for item in plan(load_config(SMOKE), Run(str(tmp_path / "run")))}
    files = {"pipeline/report/page.html.jinja", "pipeline/report/page.css"}
    assert files <= found["report"]
    assert not any(files & code for stage, code in found.items() if stage not in ("card", "report"))


def test_a_run_that_another_driver_finished_meanwhile_is_planned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, asked = load_config(SMOKE, [f"run={tmp_path}/run"]), []

    @contextmanager
    def lock_after_another(run: Run) -> Iterator[None]:
        storage.write_json(run.path("run.json"), {"stages": {}})  # what it left
        yield

    def planned(*arguments: Any) -> list[Any]:
        asked.append(arguments)
        return plan(*arguments)

    monkeypatch.setattr(executor, "lock", lock_after_another)
    monkeypatch.setattr(executor, "plan", planned)
    monkeypatch.setattr(executor.Schedule, "run", lambda self: {})
    execute(config, "run")
    assert len(asked) == 2
    monkeypatch.setattr(executor, "lock", lambda run: nullcontext())
    execute(config, "run")
    assert len(asked) == 3


def test_a_store_that_cannot_be_read_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> bytes:
        raise LookupError("no credentials\nfound")

    monkeypatch.setattr(storage, "read_or_none", fail)
    config = load_config(SMOKE, ["run=memory://bucket/run"])
    with pytest.raises(UserError, match=r"run=.*: cannot be read \(LookupError: no credentials found\); check"):
        execute(config, "run")


def test_unknown_stage_names_are_refused(tmp_path: Path) -> None:
    config, run = load_config(SMOKE), Run(str(tmp_path))
    with pytest.raises(UserError, match="--until trian: no such stage; the stages are listing"):
        up_to(plan(config, run), "trian")
    with pytest.raises(UserError, match=r"--keep nothing"):
        plan(config, run, keep=["nothing"])
    assert [item.stage.name for item in up_to(plan(config, run), "select")][-1] == "select"


def test_resources_of_a_stage_that_is_not_there_are_refused(tmp_path: Path) -> None:
    where = f"run={tmp_path}/run"
    loaded = load_config(SMOKE, [where, "cluster.stages={train: {num_cpus: 1}, train.sr32: {num_cpus: 2}}"])
    wanted = [loaded.cluster.of(stage).num_cpus for stage in ("train.base", "train.sr32", "download")]
    assert wanted == [1, 2, None]
    with pytest.raises(UserError, match=r"cluster\.stages: trian: no such stage; the stages are train, listing"):
        execute(load_config(SMOKE, [where, "cluster.stages.trian.num_cpus=1"]), "run")
    assert not (tmp_path / "run").exists()
