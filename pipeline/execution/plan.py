"""Plans a run: every stage's fingerprint, whether it is finished, and why it will run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dataprep.io.errors import UserError
from pipeline.stages.base import Stage
from pipeline.stages.continued_training import find_beginning, find_update_rule
from pipeline.stages.graph import list_stages
from pipeline.store.artifact import Artifact, Manifest
from pipeline.store.file_hashes import SourceHashes
from pipeline.store.fingerprint import collect_dependencies, hash_json, save_parsed_sources
from pipeline.store.run import Run

if TYPE_CHECKING:
    from pipeline.config import RunConfig

FINGERPRINT_LENGTH = 20  # hex digits: 80 bits
KEEPABLE = ("code changed", "versions changed")


@dataclass(frozen=True)
class FingerprintParts:
    """Everything that a stage's fingerprint covers."""

    stage: str
    config: dict[str, Any]
    inputs: dict[str, str]
    sources: dict[str, str]
    code: dict[str, str]
    versions: dict[str, str]

    def beside_config(self) -> dict[str, Any]:
        """Returns what the fingerprint covers besides the config."""
        return {name: value for name, value in vars(self).items() if name != "config"}

    def fingerprint(self) -> str:
        """Returns the fingerprint, `FINGERPRINT_LENGTH` hex digits."""
        return hash_json(vars(self))[:FINGERPRINT_LENGTH]


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its fingerprint and, if finished, its artifact."""

    stage: Stage
    fingerprint: str
    parts: FingerprintParts
    artifact: Artifact | None
    reason: str  # why it will run, or why it is kept despite a change; empty if finished


def plan_run(
    config: RunConfig, run: Run, keep: Sequence[str] = (), sources: SourceHashes | None = None
) -> list[PlannedStage]:
    """Returns every stage with its fingerprint; stages in ``keep`` stay finished despite changed code or libraries."""
    sources = sources or SourceHashes(run)
    everything = list_stages(config)
    check_names("--keep", keep, [stage.name for stage in everything])
    planned: dict[str, PlannedStage] = {}
    for stage in everything:
        planned[stage.name] = _plan_stage(stage, run, planned, sources, stage.name in keep)
    save_parsed_sources()
    return list(planned.values())


def cut_plan(planned: list[PlannedStage], until: str | None) -> list[PlannedStage]:
    """Returns the plan up to and including the stage ``until``, or all of it."""
    names = [item.stage.name for item in planned]
    if until is None:
        return planned
    check_names("--until", [until], names)
    return planned[: names.index(until) + 1]


def check_names(option: str, given: Sequence[str], names: Sequence[str]) -> None:
    """Raises UserError for a name that is not a stage."""
    for name in given:
        if name not in names:
            raise UserError(f"{option} {name}: no such stage; the stages are {', '.join(names)}")


def _plan_stage(
    stage: Stage, run: Run, before: Mapping[str, PlannedStage], sources: SourceHashes, keep: bool
) -> PlannedStage:
    code, versions = collect_dependencies(stage.type.run, [type(stage.config)])
    parts = FingerprintParts(
        stage=stage.name,
        config=stage.config.to_json(),
        inputs={name: before[name].fingerprint for name in stage.inputs},
        sources=sources.hash_files(stage.sources()) if stage.sources else {},
        code=code,
        versions=versions,
    )
    fingerprint = parts.fingerprint()
    artifact = run.artifact(stage.name, fingerprint)
    if artifact is not None:
        return PlannedStage(stage, fingerprint, parts, artifact, "")
    previous = run.last_manifest(stage.name)
    reason = _describe_change(previous, parts)
    if keep:
        if previous is None or not reason.startswith(KEEPABLE):
            raise UserError(
                f"--keep {stage.name}: only works for a change of code or library versions, this is: {reason}"
            )
        kept = run.artifact(stage.name, previous.fingerprint)
        return PlannedStage(stage, previous.fingerprint, parts, kept, f"kept: {reason}")
    reason += _describe_beginning(stage, run, before, parts, fingerprint)
    return PlannedStage(stage, fingerprint, parts, None, reason)


def _describe_beginning(
    stage: Stage, run: Run, before: Mapping[str, PlannedStage], parts: FingerprintParts, fingerprint: str
) -> str:
    """Returns whether a training goes on from an earlier one, as the end of a reason; "" where that is not known."""
    inputs = {name: artifact for name in stage.inputs if (artifact := before[name].artifact) is not None}
    rule = find_update_rule(stage.config, parts.beside_config(), inputs)
    if rule is None or len(inputs) < len(stage.inputs):
        return ""
    beginning = find_beginning(run, stage.name, run.stage_folder(stage.name, fingerprint), rule)
    return f"; {beginning.describe()}" if beginning else ""


def _describe_change(before: Manifest | None, parts: FingerprintParts) -> str:
    """Returns what changed since ``before``: the first of config, inputs, code, versions that differs, by name."""
    if before is None:
        return "never run"
    old_config, new_config = dict(_flatten(before.config)), dict(_flatten(parts.config))
    for part, old, new in [
        ("config", old_config, new_config),
        ("inputs", before.inputs, parts.inputs),
        ("source files", before.sources, parts.sources),
        ("code", before.code, parts.code),
        ("versions", before.versions, parts.versions),
    ]:
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        if changed:
            more = f" and {len(changed) - 2} more" if len(changed) > 2 else ""
            return f"{part} changed: {', '.join(changed[:2])}{more}"
    return "finished by a version with other fingerprints"


def _flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields dotted key -> value of nested mappings."""
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            yield from _flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
