"""The two runs of a comparison: what their samples are made from, the pairs of images, and what differs.

A side is a run folder, or an earlier state of one as ``RUN@FINGERPRINT`` of its stage `sample`. What made its samples
is read from the manifests that the samples' manifest leads to, not from run.json, which may be newer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataprep.io.errors import UserError
from eval.metrics.samples_table import EVALUATE, JudgedSample, read_samples
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run

MAX_PAIRS = 5000  # compared


@dataclass(frozen=True)
class ComparedRun:
    """A side: its name, and the artifacts that its samples come from."""

    name: str
    artifacts: dict[str, Artifact]  # "sample" and its direct and indirect inputs

    @property
    def config(self) -> dict[str, Any]:
        """Values by dotted key of every stage behind the samples."""
        found: dict[str, Any] = {}
        for artifact in self.artifacts.values():
            for key, value in artifact.manifest.config.items():
                found |= dict(_flatten(key, value))
        return found


@dataclass
class ImagePair:
    """The same prompt and seed in both runs: samples (of A, of B): the chosen image and the first candidate."""

    prompt: str
    seed: int
    chosen: tuple[JudgedSample, JudgedSample]
    first: tuple[JudgedSample, JudgedSample]


def load_compared_run(name: str) -> ComparedRun:
    """Loads RUN or RUN@FINGERPRINT. Raises UserError if its stage sample is not finished."""
    root, _, wanted = name.partition("@")
    run = Run(root)
    run.record()
    found = run.artifacts().get("sample")
    if wanted:
        folders = [Path(folder).name for folder in run.stage_folders("sample")]
        known = [item for item in (run.artifact("sample", folder) for folder in folders) if item]
        match = [item for item in known if item.manifest.fingerprint.startswith(wanted)]
        if len(match) != 1:
            have = ", ".join(item.manifest.fingerprint[:12] for item in known) or "none"
            raise UserError(
                f"{name}: {len(match)} finished sample stages have a fingerprint starting with {wanted}; found: {have}"
            )
        found = match[0]
    if found is None:
        raise UserError(f"{root}: stage sample is not finished, so there is nothing to compare; `imagen-ray run` it")
    artifacts: dict[str, Artifact] = {"sample": found}
    waiting = [found]
    while waiting:
        for stage, fingerprint in waiting.pop().manifest.inputs.items():
            if stage not in artifacts and (item := run.artifact(stage, fingerprint)):
                artifacts[stage] = item
                waiting.append(item)
    return ComparedRun(name, artifacts)


def load_pairs(a: ComparedRun, b: ComparedRun) -> list[ImagePair]:
    """Returns the evaluation prompts that both have with the same seed, in A's order. Raises UserError without any."""
    ours, theirs = _read_evaluated(a), _read_evaluated(b)
    pairs = [
        ImagePair(*key, (ours[key][0], theirs[key][0]), (ours[key][1], theirs[key][1])) for key in ours if key in theirs
    ]
    if not pairs:
        raise UserError(
            f"{a.name} and {b.name}: no evaluation prompt with the same text and seed in both ({len(ours)} and "
            f"{len(theirs)} prompts); compare runs with the same seed and sample.evaluate"
        )
    return pairs[:MAX_PAIRS]


def _read_evaluated(run: ComparedRun) -> dict[tuple[str, int], list[JudgedSample]]:
    """Returns (prompt, seed) -> the chosen sample and the first candidate."""
    found: dict[tuple[str, int], dict[str, JudgedSample]] = {}
    for sample in read_samples(run.artifacts["sample"].files(), EVALUATE, images=True):
        entry = found.setdefault((sample.prompt, sample.seed), {})
        if sample.chosen:
            entry["chosen"] = sample
        if sample.index == 0:
            entry["first"] = sample
    return {key: [entry["chosen"], entry["first"]] for key, entry in found.items() if len(entry) == 2}


def list_differences(a: ComparedRun, b: ComparedRun) -> list[dict[str, str]]:
    """Returns the config keys and the stages' code that differ: key, a, b."""
    ours, theirs = a.config, b.config
    rows = [
        {"key": key, "a": _format_value(ours, key), "b": _format_value(theirs, key)}
        for key in dict.fromkeys([*ours, *theirs])
        if _format_value(ours, key) != _format_value(theirs, key)
    ]
    for stage in dict.fromkeys([*a.artifacts, *b.artifacts]):
        codes = [run.artifacts[stage].manifest.code if stage in run.artifacts else {} for run in (a, b)]
        changed = sorted(name for name in {*codes[0], *codes[1]} if codes[0].get(name) != codes[1].get(name))
        if changed:
            names = ", ".join(changed[:4]) + (f" and {len(changed) - 4} more" if len(changed) > 4 else "")
            rows.append({"key": f"code of {stage}", "a": "", "b": f"differs in {names}"})
    return rows


def _flatten(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flatten(f"{key}.{name}", item)
    else:
        yield key, value


def _format_value(config: Mapping[str, Any], key: str) -> str:
    return str(config[key]) if key in config else "(not set)"
