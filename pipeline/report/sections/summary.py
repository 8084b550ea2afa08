"""The run in one sentence and a few figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataprep.io.wording import count_of
from pipeline.report.section import ReportInputs, ReportSection, SectionContent
from pipeline.store.wall_time import measure_wall
from pipeline.units import format_decimal, format_duration, format_percent


def collect_summary(inputs: ReportInputs) -> SectionContent:
    """Collects ``sentence``, and ``tiles``: label, value, note."""
    artifacts, metrics = inputs.artifacts, inputs.metrics
    selected = artifacts["select"].manifest.counters
    wall = format_duration(measure_wall(inputs.events))
    added_up = format_duration(sum(artifact.manifest.seconds for artifact in artifacts.values()))
    parameters = sum(artifacts[f"train.{name}"].manifest.counters.get("parameters", 0) for name in inputs.cascade)
    sentence = (
        f"{selected['kept']:,} of {count_of(selected['rows'], 'row')} were kept; a cascade of "
        f"{count_of(len(inputs.cascade), 'stage')} ({' → '.join(inputs.cascade)}, {parameters:,} parameters) was "
        f"trained on them. The run took {wall}; the times of the stages add up to {added_up}."
    )
    tiles = [
        _tile("pairs kept", f"{selected['kept']:,}", f"of {count_of(selected['rows'], 'row')}"),
        _tile("wall time", wall, f"stages add up to {added_up}"),
        _tile("parameters", f"{parameters / 1e6:.2f} M", "of the cascade"),
        *list_metric_tiles(metrics),
    ]
    return SectionContent({"tiles": tiles, "sentence": sentence})


def list_metric_tiles(metrics: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns label, value and note of the main metrics."""
    tiles = []
    for split, accuracy in metrics.get("composition", {}).items():
        if "all" in accuracy:
            rows = [row for row in metrics["composition_table"] if (row["split"], row["attribute"]) == (split, "all")]
            note = _format_interval(rows[0]) if rows else ""
            tiles.append(_tile(f"all correct, {split} combinations", format_percent(accuracy["all"], 0), note))
    if metrics.get("clip_score") is not None:
        real = metrics.get("clip_score_validation")
        note = f"real pairs: {format_decimal(real['value'])}" if real else "by the CLIP that scores"
        tiles.append(_tile("CLIP score", format_decimal(metrics["clip_score"]), note))
    for entry in (metrics.get("distances") or {}).values():
        if entry["fd"] is not None:
            tiles.append(
                _tile(entry["name"], format_decimal(entry["fd"]), f"{entry['reference_images']:,} real images")
            )
    return [*tiles, *_list_other_tiles(metrics)]


def _list_other_tiles(metrics: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    for key, entry in (metrics.get("distances") or {}).items():
        if (cmmd := metrics.get(f"cmmd_{key}")) is not None:
            yield _tile(f"CMMD {key}", format_decimal(cmmd), f"{entry['reference_images']:,} real images")
    for entry in (metrics.get("judges") or {}).values():
        for label, value in list(entry["values"].items())[:1]:
            number = value["value"] if isinstance(value, Mapping) else value
            yield _tile(entry["title"], format_decimal(number), f"{label}, {count_of(entry['images'], 'image')}")
    if found := (metrics.get("memorisation") or {}).get("samples"):
        note = f"{found['copies']} of {count_of(found['images'], 'sample')}"
        yield _tile("near copies of training images", format_percent(found["share"]), note)


def _format_interval(row: Mapping[str, Any]) -> str:
    return f"{format_percent(row['low'], 0)} to {format_percent(row['high'], 0)}, n = {row['n']}"


def _tile(label: str, value: str, note: str = "") -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


SECTION = ReportSection("Summary", collect_summary, Path(__file__).with_suffix(".html.jinja"))
