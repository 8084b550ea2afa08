"""The stage graph as SVG coordinates: boxes in layers, edges as curves.

Drawn here because the page must open offline: graphviz needs a system package, and Mermaid or dagre.js would add their
scripts to every page and lay out in the browser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import networkx as nx

from pipeline.store.artifact import Artifact

WIDTH, HEIGHT = 194, 50  # pixels of a box
COLUMN, ROW = 208, 74  # pixels from one box to the next


@dataclass(frozen=True)
class StageBox:
    """What a box says; ``inputs`` is its tooltip, ``kind`` its CSS class."""

    stage: str
    kind: str
    fingerprint: str
    note: str
    inputs: str


def draw_stage_graph(artifacts: Mapping[str, Artifact], describe: Callable[[Artifact], StageBox]) -> dict[str, Any]:
    """Returns width, height, nodes and edge paths, each stage below its inputs.

    Edges that a longer path implies are left out (transitive reduction); a node's ``inputs`` lists all.
    """
    whole = nx.DiGraph()
    whole.add_nodes_from(artifacts)
    for name, artifact in artifacts.items():
        whole.add_edges_from((source, name) for source in artifact.manifest.inputs if source in artifacts)
    layers, chains = _assign_layers(whole, list(nx.transitive_reduction(whole).edges))
    widest = max(map(len, layers), default=1)
    place: dict[str, tuple[float, float]] = {}
    for level, layer in enumerate(layers):
        start = (widest - len(layer)) / 2
        for index, node in enumerate(layer):
            place[node] = ((start + index) * COLUMN + COLUMN / 2, level * ROW + HEIGHT / 2 + 4)
    return {
        "width": widest * COLUMN,
        "height": len(layers) * ROW - (ROW - HEIGHT) + 8,
        "nodes": [_place_box(describe(artifact), *place[name]) for name, artifact in artifacts.items()],
        "paths": [_trace_edge([place[node] for node in chain]) for chain in chains],
    }


def _assign_layers(whole: nx.DiGraph, edges: list[tuple[str, str]]) -> tuple[list[list[str]], list[list[str]]]:
    """Returns the nodes by layer, left to right, and each edge as the chain of nodes that it passes.

    A long edge gets a placeholder in every layer between; nodes are sorted by the mean position of their parents.
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


def _place_box(box: StageBox, x: float, y: float) -> dict[str, Any]:
    return asdict(box) | {"x": x - WIDTH / 2, "y": y - HEIGHT / 2, "width": WIDTH, "height": HEIGHT}


def _trace_edge(points: Sequence[tuple[float, float]]) -> str:
    """Returns the SVG path from the bottom of the first box to the top of the last."""
    (x, y), *rest = points
    y += HEIGHT / 2
    path = f"M{x:.1f} {y:.1f}"
    for number, (to_x, to_y) in enumerate(rest, 1):
        last = number == len(rest)
        end = to_y - HEIGHT / 2 if last else to_y + HEIGHT / 2
        bend = to_y - HEIGHT / 2  # the curve ends where the next row of boxes begins
        path += f" C{x:.1f} {(y + bend) / 2:.1f} {to_x:.1f} {(y + bend) / 2:.1f} {to_x:.1f} {bend:.1f}"
        if not last:
            path += f" L{to_x:.1f} {end:.1f}"
        x, y = to_x, end
    return path
