"""Audits as tables: of samples, side by side with that of the data that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dataprep.io.scorer_heads import HEADS
from pipeline.units import format_percent

Audit = Mapping[str, Any]  # of `dataprep.card.audit.build_audit`


def tabulate_audits(data: Audit | None, samples: Audit | None) -> list[dict[str, Any]]:
    """Returns tables of title, columns (``#``: of numbers) and rows; what neither of the two measured has none."""
    data, samples = data or {}, samples or {}
    captions = [audit.get("captions") or 0 for audit in (data, samples)]
    tables = [
        _compare("People that captions and prompts name", "people", data, samples, captions, ("captions", "prompts"))
    ]
    tables.append(_compare("Faces", "faces", data, samples))
    tables.append(_compare("Share that text covers", "text", data, samples))
    for kind in ("labels", "heads"):
        parts = [audit.get(kind) or {} for audit in (data, samples)]
        for name in dict.fromkeys([*parts[0], *parts[1]]):
            title = f"Labels by CLIP: {name}" if kind == "labels" else f"{name.capitalize()}: {HEADS[name].predicts}"
            tables.append(_compare(title, name, parts[0], parts[1]))
    return [table for table in tables if table["rows"]]


def _compare(
    title: str,
    key: str,
    data: Audit,
    samples: Audit,
    wholes: Sequence[int] | None = None,
    units: tuple[str, str] = ("training images", "samples"),
) -> dict[str, Any]:
    counted: list[Mapping[str, int]] = [audit.get(key) or {} for audit in (data, samples)]
    wholes = wholes or [sum(counts.values()) for counts in counted]
    if not any(sum(counts.values()) for counts in counted):
        counted = [{}, {}]
    names = sorted(dict.fromkeys([*counted[0], *counted[1]]), key=lambda name: _place(name, counted))
    columns = [key, f"#{units[0]}", "#share", f"#{units[1]}", "#share"]
    rows = [[name, *_count(counted[0], name, wholes[0]), *_count(counted[1], name, wholes[1])] for name in names]
    return {"title": title, "columns": columns, "rows": rows}


def _count(counts: Mapping[str, int], name: str, whole: int) -> tuple[Any, str]:
    return (counts.get(name, 0), format_percent(counts.get(name, 0) / whole)) if whole else ("", "")


def _place(name: str, counted: Sequence[Mapping[str, int]]) -> tuple[float, int]:
    """Sort key of a class: numbers by their value, others in the order of the audits."""
    if name.split()[0].isdigit():
        return int(name.split()[0]), 0
    known = [*dict.fromkeys([*counted[0], *counted[1]])]
    return float("inf"), known.index(name)
