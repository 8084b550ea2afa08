"""Connected components of a graph, in memory (`Forest`) and over many tasks (`find_components`).

Rows that may be duplicates of each other are linked; whether a row is dropped depends on the rows of its component
alone, so components are decided apart from each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import numpy as np

from dataprep.filters.exchange import Parts, count_parts, spread
from dataprep.filters.left_rows import LeftRows
from dataprep.filters.pair_shards import Groups
from dataprep.filters.steps import OpenTask, collect_parts, write_parts

EDGE = np.dtype([("node", np.int64), ("to", np.int64)])


class Forest:
    """Sets of the numbers 0 to ``count`` - 1, joined by pairs; the root of a set is its smallest number."""

    def __init__(self, count: int) -> None:
        self.parent_N = np.arange(count)

    def find(self, index_P: np.ndarray) -> np.ndarray:
        """Returns the root of each number."""
        root_P = self.parent_N[index_P]
        while ((above_P := self.parent_N[root_P]) != root_P).any():
            root_P = above_P
        self.parent_N[index_P] = root_P
        return root_P

    def join(self, left_P: np.ndarray, right_P: np.ndarray) -> None:
        """Joins the sets of each pair."""
        while len(left_P):
            left_P, right_P = self.find(left_P), self.find(right_P)
            apart_P = left_P != right_P
            low_P, high_P = np.minimum(left_P, right_P)[apart_P], np.maximum(left_P, right_P)[apart_P]
            np.minimum.at(self.parent_N, high_P, low_P)  # both are roots; a pair that lost comes again
            left_P, right_P = low_P, high_P

    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns every number that is not a root, and its root."""
        root_N = self.find(np.arange(len(self.parent_N)))
        node_K = np.flatnonzero(root_N != np.arange(len(root_N)))
        return node_K, root_N[node_K]


def deal_edges(node_K: np.ndarray, to_K: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns records of `EDGE` and the part of each, which is that of its ``node``."""
    edge_K = np.empty(len(node_K), EDGE)
    edge_K["node"], edge_K["to"] = node_K, to_K
    return edge_K, spread(edge_K["node"], parts)


def deal_both_ways(node_K: np.ndarray, to_K: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns each edge as a record of either end, and the parts."""
    return deal_edges(np.concatenate([node_K, to_K]), np.concatenate([to_K, node_K]), parts)


def find_components(rows: LeftRows, edges: Parts) -> Parts:
    """Labels the rows that have an edge with the smallest position of their component.

    Alternates large-star and small-star (Kiveris et al., "Connected components in MapReduce and beyond", SoCC 2014)
    until neither changes an edge. A task holds the edges of its part.

    Args:
        edges: from `deal_both_ways`, in as many parts as ``count_edge_parts`` says.

    Returns:
        Records of `EDGE`, from each row to its label, as parts by group.
    """
    for number in count(1):
        edges, changed = _run_star(rows, f"large-star-{number}", edges, large=True)
        edges, changed_too = _run_star(rows, f"small-star-{number}", edges, large=False)
        if not changed and not changed_too:
            break
    arguments = {"edges": edges, "groups": rows.groups}
    return rows.exchange("labels", RouteLabels, arguments, edges.count, len(rows.groups.starts))


def count_edge_parts(nodes: int) -> int:
    """Returns in how many parts the edges among ``nodes`` rows are dealt out."""
    return count_parts(2 * nodes, EDGE.itemsize)


def _run_star(rows: LeftRows, step: str, edges: Parts, large: bool) -> tuple[Parts, int]:
    results = rows.run_tasks(step, Star, {"edges": edges, "large": large}, edges.count)
    return collect_parts(results, edges.count), sum(result.counters["changed"] for result in results)


class Star:
    """Worker: replaces the edges of each node of a part by edges to its smallest neighbour (or itself).

    ``large``: of the neighbours above the node; reads edges as records of both ends, writes them as records of the
    larger. Else of the neighbours below and the node itself; reads records of the larger, writes records of both.
    """

    def __init__(self, edges: Parts, large: bool) -> None:
        self.edges, self.large = edges, large

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `EDGE`; counts edges that ``changed``."""
        edge_K = _sort_distinct(self.edges.read(task.id, EDGE))
        node_K, to_K = edge_K["node"], edge_K["to"]
        first_K = np.flatnonzero(np.concatenate([[True], node_K[1:] != node_K[:-1]])[: len(node_K)])
        count_G = np.diff(np.append(first_K, len(node_K)))
        least_K = np.repeat(np.minimum(node_K[first_K], to_K[first_K]), count_G)
        if self.large:
            above_K = to_K > node_K
            changed = int((least_K != node_K)[above_K].sum())
            dealt = deal_edges(to_K[above_K], least_K[above_K], self.edges.count)
        else:
            rest_K = to_K != least_K
            changed = int(rest_K.sum())
            dealt = deal_both_ways(
                np.concatenate([node_K[first_K], to_K[rest_K]]),
                np.concatenate([least_K[first_K], least_K[rest_K]]),
                self.edges.count,
            )
        return {"changed": changed} | write_parts(task, [dealt], EDGE, self.edges.count)


class RouteLabels:
    """Worker: deals out the labels of a part's nodes, and of the labels themselves, to the groups of their rows."""

    def __init__(self, edges: Parts, groups: Groups) -> None:
        self.edges, self.groups = edges, groups

    def __call__(self, task: OpenTask) -> dict[str, int]:
        """Writes parts of `EDGE`; a label may occur more than once."""
        return write_parts(task, self._deal(task), EDGE, len(self.groups.starts))

    def _deal(self, task: OpenTask) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        edge_K = _sort_distinct(self.edges.read(task.id, EDGE))
        edge_K = edge_K[edge_K["to"] < edge_K["node"]]
        yield edge_K, self.groups.find(edge_K["node"])
        label_L = np.unique(edge_K["to"])
        own_L, _ = deal_edges(label_L, label_L, 1)
        yield own_L, self.groups.find(label_L)


def _sort_distinct(edge_K: np.ndarray) -> np.ndarray:
    """Returns the distinct edges by node, then by neighbour."""
    edge_K = edge_K[np.lexsort((edge_K["to"], edge_K["node"]))]
    same_K = (edge_K["node"][1:] == edge_K["node"][:-1]) & (edge_K["to"][1:] == edge_K["to"][:-1])
    return edge_K[np.concatenate([[True], ~same_K])[: len(edge_K)]]
