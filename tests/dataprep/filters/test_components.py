"""Connected components, against scipy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dataprep.filters.components import EDGE, Forest, deal_both_ways, find_components
from dataprep.filters.exchange import Parts
from dataprep.filters.left_rows import LeftRows
from dataprep.filters.pair_shards import SHARD_ROWS, Groups
from dataprep.filters.steps import LocalRunner, LocalTask, TaskResult, collect_parts, list_outputs, write_parts


def smallest_of_component(count: int, left_P: np.ndarray, right_P: np.ndarray) -> np.ndarray:
    graph = coo_matrix((np.ones(len(left_P)), (left_P, right_P)), shape=(count, count))
    _, label_N = connected_components(graph, directed=False)
    first_L = np.full(label_N.max() + 1, count)
    np.minimum.at(first_L, label_N, np.arange(count))
    return first_L[label_N]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(1, 60), pairs=st.integers(0, 80), batches=st.integers(1, 4))
def test_a_forest_joins_what_pairs_connect(seed: int, count: int, pairs: int, batches: int) -> None:
    rng = np.random.default_rng(seed)
    left_P, right_P = rng.integers(0, count, (2, pairs))
    forest = Forest(count)
    for some in np.array_split(np.arange(pairs), batches):
        forest.join(left_P[some], right_P[some])
    expected_N = smallest_of_component(count, left_P, right_P)
    np.testing.assert_array_equal(forest.find(np.arange(count)), expected_N)
    node_K, root_K = forest.edges()
    np.testing.assert_array_equal(node_K, np.flatnonzero(expected_N != np.arange(count)))
    np.testing.assert_array_equal(root_K, expected_N[node_K])


def write_edges(folder: Path, left_P: np.ndarray, right_P: np.ndarray, parts: int) -> Parts:
    results = []
    for number, some in enumerate(np.array_split(np.arange(len(left_P)), 3)):
        out = folder / f"edges-{number}"
        out.mkdir()
        dealt = deal_both_ways(left_P[some], right_P[some], parts)
        counters = write_parts(LocalTask(number, {}, out), [dealt], EDGE, parts)
        results.append(TaskResult(number, list_outputs(map(str, out.iterdir())), counters))
    return collect_parts(results, parts)


@pytest.mark.parametrize("parts", [1, 5])
@pytest.mark.parametrize("shape", ["path", "star", "random", "nothing"])
def test_labels_over_many_tasks_are_those_of_scipy(tmp_path: Path, parts: int, shape: str) -> None:
    count, rng = 300, np.random.default_rng(0)
    order_N = rng.permutation(count)
    left_P, right_P = {
        "path": (order_N[:-1], order_N[1:]),  # as long as it can be
        "star": (np.full(count - 1, order_N[0]), order_N[1:]),
        "random": (rng.integers(0, count, 200), rng.integers(0, count, 200)),
        "nothing": (order_N[:0], order_N[:0]),
    }[shape]
    left_P, right_P = left_P[left_P != right_P], right_P[left_P != right_P]
    expected_N = smallest_of_component(count, left_P, right_P)
    # Rows are in six shards of 50; groups of two.
    positions = np.arange(count) // 50 * SHARD_ROWS + np.arange(count) % 50
    groups = Groups((0, 2, 4), (2, 4, 6))
    edges = write_edges(tmp_path, positions[left_P], positions[right_P], parts)
    labels = find_components(LeftRows(LocalRunner(tmp_path), [], groups, [], count, "test"), edges)
    for group in range(3):
        found = {(int(node), int(to)) for node, to in labels.read(group, EDGE)}
        own = [row for row in np.unique([*left_P, *right_P]) if row // 100 == group]
        assert found == {(int(positions[row]), int(positions[expected_N[row]])) for row in own}
