"""The report's summary in Markdown: figures and tables, without images and captions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dataprep.io.markdown import escape_cell, format_table
from pipeline.units import format_decimal, format_duration, format_percent

Values = Mapping[str, Any]


def format_summary(title: str, record: Values, sections: Mapping[str, Values]) -> str:
    """Returns the summary; ``sections`` are the values of every section by name."""
    summary, run = sections["summary"], sections["run"]
    commit = escape_cell((record["git_commit"] or "unknown")[:12])
    command = record["command"].replace("`", "'")
    lines = [
        f"# {escape_cell(title)}",
        "",
        escape_cell(summary["sentence"]),
        "",
        f"{escape_cell(record['started'])} · seed {record['seed']} · commit {commit} · `{command}`",
        "",
        *_format_composition(sections["metrics"]),
        "## Figures",
        "",
        *format_table(["", "#"], [*_list_tiles(summary), *_list_metrics(sections["metrics"])]),
        "",
        *_format_funnel(sections["funnel"]),
        *_format_training(sections["training"]),
        *_format_stages(run),
        *_format_incidents(run),
    ]
    return "\n".join(lines).strip() + "\n"


def _format_composition(metrics: Values) -> list[str]:
    rows = [row for row in metrics["composition"] if row["by"] == "split" or row["attribute"] == "all"]
    if not rows:
        return []
    count = metrics["candidates"]
    chosen = f"Best of {count} images per prompt, chosen by CLIP" if count > 1 else "One image per prompt"
    head = ["", "attribute", "#correct", "#95% interval", "#chance", "#ceiling", "#n"]
    cells = [
        (
            row["group"],
            row["attribute"],
            format_percent(row["accuracy"]),
            f"{format_percent(row['low'])} to {format_percent(row['high'])}",
            format_percent(row["chance"]),
            format_percent(row["ceiling"]),
            row["n"],
        )
        for row in rows
    ]
    note = f"{chosen}. Chance: the same images against other prompts. Ceiling: real scenes of the same prompts."
    return ["## Composition", "", note, "", *format_table(head, cells), ""]


def _list_tiles(summary: Values) -> Iterator[tuple[str, str]]:
    for tile in summary["tiles"]:
        yield tile["label"], f"{tile['value']} ({tile['note']})" if tile["note"] else tile["value"]


def _list_metrics(metrics: Values) -> Iterator[tuple[str, str]]:
    if found := metrics["retrieval"]:
        recalls = [format_percent(found[f"image_to_text_recall_at_{k}"], 0) for k in (1, 5)]
        yield "CLIP retrieval, image to text, recall at 1 / at 5", " / ".join(recalls)
    for row in metrics["best_of"]:
        label, value = f"best of {row['n']}: CLIP score", format_decimal(row["clip_score"]["value"])
        if row["accuracy"]:
            label, value = f"{label}, all correct", f"{value}, {format_percent(row['accuracy']['value'])}"
        yield label, value
    for metric in metrics["more"]:
        for name, value, interval in metric["rows"]:
            yield f"{metric['title']}: {name}", f"{value} ({interval})" if interval else value


def _format_funnel(funnel: Values) -> list[str]:
    rows = [(f"{row['filter']}: {row['reason']}", row["in"], row["dropped"], row["kept"]) for row in funnel["funnel"]]
    return ["## Data", "", *format_table(["filter", "#in", "#dropped", "#kept"], rows), ""]


def _format_training(training: Values) -> list[str]:
    head = ["stage", "#parameters", "#steps", "#loss", "#validation", "#samples/s"]
    rows = [
        (
            row["stage"],
            row["parameters"],
            row["steps"],
            format_decimal(row["loss"], 4),
            format_decimal(row["validation"], 4),
            format_decimal(row["rate"], 0),
        )
        for row in training["training"]
    ]
    return ["## Training", "", *format_table(head, rows), ""]


def _format_stages(run: Values) -> list[str]:
    rows = [
        (row["stage"], row["fingerprint"][:12], format_duration(row["seconds"]), row["counters"])
        for row in run["stages"]
    ]
    return ["## Stages", "", *format_table(["stage", "fingerprint", "#time", "counters"], rows), ""]


def _format_incidents(run: Values) -> list[str]:
    lines = [escape_cell(f"{item['time']} {item['what']} {item['stage']}: {item['why']}") for item in run["incidents"]]
    lines += [
        escape_cell(f"{item['stage']}: shard {item['shard']} is quarantined: {item['reason']}")
        for item in run["quarantined"]
    ]
    return ["## Failures", "", *(f"- {line}" for line in lines)] if lines else []
