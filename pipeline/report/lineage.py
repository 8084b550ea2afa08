"""What was made from what: the stages as a graph in SVG, as a table, and what went wrong on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import networkx as nx

from pipeline.store import Artifact

# The counter that says best how much a stage made: the first of these that it has.
COUNTERS = ("kept", "success", "ok", "scored", "captions", "parameters", "images", "rows")
KINDS = {"encoder": "model", "clip": "model", "sample": "judge", "evaluate": "judge", "report": "judge"}
WIDTH, HEIGHT, ACROSS, DOWN = 194, 50, 208, 74  # of a node, and from one node to the next
TROUBLE = ("stage_failed", "run_failed", "quarantined", "training_failed", "forgotten")
LONGEST = 400  # characters of an error that are shown


def lineage(artifacts: Mapping[str, Artifact], record: Mapping[str, Any]) -> dict[str, Any]:
    """Table rows of the stages, quarantined shards, and the graph."""
    total = sum(artifact.manifest.seconds for artifact in artifacts.values()) or 1.0
    ranks = record["config"].get("cluster", {}).get("ranks", 1)
    rows, quarantined = [], []
    for name, artifact in artifacts.items():
        manifest = artifact.manifest
        size = sum(output.bytes for output in manifest.outputs)
        trained = artifact.has("log.jsonl")
        rows.append(
            {
                "stage": name,
                "fingerprint": manifest.fingerprint,
                "seconds": manifest.seconds,
                "share": manifest.seconds / total,
                "rank_hours": manifest.seconds * ranks / 3600 if trained else None,
                "rate": _rate(artifact),
                "files": len(manifest.outputs),
                "bytes": size,
                "inputs": ", ".join(manifest.inputs),
                "counters": ", ".join(f"{key} {count:,}" for key, count in manifest.counters.items()),
            }
        )
        quarantined += [{"stage": name, **item} for item in manifest.quarantined]
    return {"lineage": rows, "quarantined": quarantined, "graph": graph(artifacts)}


def made(artifact: Artifact) -> tuple[str, int] | None:
    """How much a stage made: (counter, count)."""
    counters = artifact.manifest.counters
    return next(((name, counters[name]) for name in COUNTERS if name in counters), None)


def _rate(artifact: Artifact) -> float | None:
    """Rows, captions or images a second; of training the log tells."""
    counted = made(artifact)
    seconds = artifact.manifest.seconds
    return counted[1] / seconds if counted and counted[0] != "parameters" and seconds > 0 else None


def troubles(events: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What went wrong and was noted in the run's events, oldest first: time, what, stage, why."""
    found = []
    for event in events:
        if event["event"] in TROUBLE:
            why = event.get("error") or event.get("reason") or ""
            if event["event"] == "quarantined":
                why = f"shard {event.get('shard')}: {why}"
            elif event["event"] == "forgotten":
                why = f"{event.get('samples')} rows, on request"
            when = str(event["time"])[:19].replace("T", " ")
            what = event["event"].replace("_", " ")
            found.append({"time": when, "what": what, "stage": event.get("stage", ""), "why": str(why)[:LONGEST]})
    return found


# ---------------------------------------------------------------------------------------------- graph


def graph(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """The stages as boxes in layers, each below its inputs: width, height, nodes and paths of the edges.

    Edges that a longer way stands for are left out, as is usual; a node's ``inputs`` has them all.
    """
    whole = nx.DiGraph()
    whole.add_nodes_from(artifacts)
    for name, artifact in artifacts.items():
        whole.add_edges_from((source, name) for source in artifact.manifest.inputs if source in artifacts)
    edges = list(nx.transitive_reduction(whole).edges)
    layers, chains = _layers(whole, edges)
    widest = max(map(len, layers), default=1)
    place: dict[str, tuple[float, float]] = {}
    for level, layer in enumerate(layers):
        start = (widest - len(layer)) / 2
        for index, node in enumerate(layer):
            place[node] = ((start + index) * ACROSS + ACROSS / 2, level * DOWN + HEIGHT / 2 + 4)
    nodes = [_node(artifact, *place[name]) for name, artifact in artifacts.items()]
    paths = [_path([place[node] for node in chain]) for chain in chains]
    size = {"width": widest * ACROSS, "height": len(layers) * DOWN - (DOWN - HEIGHT) + 8}
    return {**size, "nodes": nodes, "paths": paths}


def _layers(whole: nx.DiGraph, edges: list[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Nodes by layer from left to right, and each edge as the chain of nodes that it passes.

    A long edge passes a place of its own in every layer between; nodes stand in the order of their parents' middle.
    """
    layers = [sorted(layer, key=list(whole).index) for layer in nx.topological_generations(whole)]
    level = {node: number for number, layer in enumerate(layers) for node in layer}
    chains = []
    for source, target in sorted(edges, key=lambda edge: (level[edge[0]], edge)):
        between = [f"{source}>{target}>{number}" for number in range(level[source] + 1, level[target])]
        for number, name in enumerate(between, level[source] + 1):
            layers[number].append(name)
        chains.append([source, *between, target])
    parents: dict[str, list[str]] = {}
    for chain in chains:
        for before, after in pairwise(chain):
            parents.setdefault(after, []).append(before)
    middle: dict[str, float] = {}
    for layer in layers:
        for node in layer:
            above = [middle[parent] for parent in parents.get(node, [])]
            middle[node] = sum(above) / len(above) if above else 0.0
        layer.sort(key=lambda node: (middle[node], node not in whole))
        for index, node in enumerate(layer):
            middle[node] = index - (len(layer) - 1) / 2
    return layers, chains


def _node(artifact: Artifact, x: float, y: float) -> dict[str, Any]:
    manifest = artifact.manifest
    counted = made(artifact)
    said = f"{_short(counted[1])} {counted[0]} · " if counted else ""
    kind = "train" if manifest.stage.startswith("train.") else KINDS.get(manifest.stage, "data")
    node = {"stage": manifest.stage, "kind": kind, "x": x - WIDTH / 2, "y": y - HEIGHT / 2}
    node |= {"fingerprint": manifest.fingerprint[:8], "note": f"{said}{duration(manifest.seconds)}"}
    return node | {"inputs": ", ".join(manifest.inputs) or "nothing", "width": WIDTH, "height": HEIGHT}


def _path(points: Sequence[tuple[float, float]]) -> str:
    """An edge through its points: from the lower side of the first box to the upper side of the last."""
    (x, y), *rest = points
    y += HEIGHT / 2
    path = f"M{x:.1f} {y:.1f}"
    for number, (to_x, to_y) in enumerate(rest, 1):
        last = number == len(rest)
        end = to_y - HEIGHT / 2 if last else to_y + HEIGHT / 2
        bend = to_y - HEIGHT / 2  # the curve is over where the next row of boxes begins
        path += f" C{x:.1f} {(y + bend) / 2:.1f} {to_x:.1f} {(y + bend) / 2:.1f} {to_x:.1f} {bend:.1f}"
        if not last:
            path += f" L{to_x:.1f} {end:.1f}"
        x, y = to_x, end
    return path


def _short(count: int) -> str:
    return f"{count:,}" if count < 100_000 else f"{count / 1e6:,.2f} M"


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
