"""The run itself: the stage graph, time and size per stage, failures, versions, command and config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dataprep.io.wording import count_of
from pipeline.report import charts
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.report.stage_graph import StageBox, draw_stage_graph
from pipeline.store.artifact import Artifact
from pipeline.store.wall_time import measure_wall
from pipeline.units import format_duration

INCIDENTS = ("stage_failed", "run_failed", "quarantined", "training_failed", "forgotten")  # events that are shown
MAX_ERROR = 400  # characters of an error that are shown


# StageType.kind -> its entry in the graph's legend; the kind is also the CSS class.
KINDS = {"data": "data", "model": "frozen models", "train": "training", "evaluation": "sampling and metrics"}


def collect_run(inputs: ReportInputs) -> SectionContent:
    """Collects the table of stages, the graph, quarantined shards and incidents, and the run's record."""
    artifacts, record = inputs.artifacts, inputs.record
    values = {
        "stages": _list_stages(artifacts),
        "wall": measure_wall(inputs.events),
        "added_up": sum(artifact.manifest.seconds for artifact in artifacts.values()),
        "quarantined": [
            {"stage": name, **item} for name, artifact in artifacts.items() for item in artifact.manifest.quarantined
        ],
        "incidents": list_incidents(inputs.events),
        "graph": draw_stage_graph(artifacts, describe_stage),
        "kinds": KINDS,
        "record": record,
        "config": yaml.safe_dump(record["config"], sort_keys=False, allow_unicode=True),
    }
    seconds = {name: artifact.manifest.seconds for name, artifact in artifacts.items()}
    return SectionContent(values, {"durations": charts.plot_durations(seconds)})


def _list_stages(artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    total = sum(artifact.manifest.seconds for artifact in artifacts.values()) or 1.0
    rows = []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        ranks = manifest.counters.get("ranks")  # of the last group
        rows.append(
            {
                "stage": name,
                "fingerprint": manifest.fingerprint,
                "seconds": manifest.seconds,
                "share": manifest.seconds / total,
                "rank_hours": manifest.seconds * ranks / 3600 if ranks else None,
                "rate": _measure_rate(artifact),
                "files": len(manifest.outputs),
                "bytes": sum(output.bytes for output in manifest.outputs),
                "inputs": ", ".join(manifest.inputs),
                "counters": ", ".join(f"{key} {count:,}" for key, count in manifest.counters.items()),
            }
        )
    return rows


def _count_made(artifact: Artifact) -> tuple[str, int] | None:
    """Returns (counter, count) of the stage's main counter; None if it has not counted it."""
    counter, counters = artifact.manifest.counter, artifact.manifest.counters
    return (counter, counters[counter]) if counter in counters else None


def _measure_rate(artifact: Artifact) -> float | None:
    """Returns rows, captions or images per second; None for models, whose log has their throughput."""
    made, seconds = _count_made(artifact), artifact.manifest.seconds
    return made[1] / seconds if made and made[0] != "parameters" and seconds > 0 else None


def describe_stage(artifact: Artifact) -> StageBox:
    """Returns the text and the kind of a stage's box in the graph."""
    manifest = artifact.manifest
    made = _count_made(artifact)
    note = f"{_shorten_count(made[1])} {made[0]} · " if made else ""
    return StageBox(
        stage=manifest.stage,
        kind=manifest.kind,
        fingerprint=manifest.fingerprint[:8],
        note=note + format_duration(manifest.seconds),
        inputs=", ".join(manifest.inputs) or "nothing",
    )


def _shorten_count(count: int) -> str:
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:,.2f} M"


def list_incidents(events: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Returns the failures, quarantines and removals among the events, oldest first: time, what, stage, why."""
    found = []
    for event in events:
        if event["event"] in INCIDENTS:
            why = event.get("error") or event.get("reason") or ""
            if event["event"] == "quarantined":
                why = f"shard {event.get('shard')}: {why}"
            elif event["event"] == "forgotten":
                why = f"{count_of(int(event.get('samples') or 0), 'row')}, on request"
            when = str(event["time"])[:19].replace("T", " ")
            what = event["event"].replace("_", " ")
            found.append({"time": when, "what": what, "stage": event.get("stage", ""), "why": str(why)[:MAX_ERROR]})
    return found


SECTION = ReportSection("Run", collect_run, Path(__file__).with_suffix(".html.jinja"))
