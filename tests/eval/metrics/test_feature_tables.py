"""Tables of features are collected alike for any split into files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dataprep.io.parquet import write_table
from eval.metrics.distances import describe_distances
from eval.metrics.feature_models import FeatureSpace
from eval.metrics.feature_sets import SAMPLE_SET
from eval.metrics.feature_tables import collect_features, make_features_table
from tests.helpers.judged import fake_clip

SPACE = FeatureSpace("clip", "fd_clip", "CLIP", "0" * 16, 64, True)


def test_collecting_is_the_same_for_any_split_into_files(tmp_path: Path) -> None:
    rng, models = np.random.default_rng(0), {"clip": fake_clip()}
    images = [rng.integers(0, 255, (8, 8, 3)).astype(np.uint8) for _ in range(30)]
    ids = [str(index) for index in range(30)]
    whole = make_features_table(models, SAMPLE_SET, ids, images, ["a red circle"] * 30)

    def files(*cuts: int) -> list[str]:
        paths = []
        for start, stop in zip((0, *cuts), (*cuts, 30), strict=True):
            path = tmp_path / f"{len(cuts)}-{start}.parquet"
            write_table(whole.slice(start, stop - start), path, "features")
            paths.append(str(path))
        return paths[::-1]

    one, other = (collect_features(files(*cuts), 10, 8) for cuts in ((), (1, 9, 20)))
    a, b = (found.sets["sample", 8, "clip"] for found in (one, other))
    assert np.array_equal(a.moments.covariance(), b.moments.covariance())
    captions = [[caption for _, _, caption in found.pairs["sample"].taken()] for found in (one, other)]
    assert captions[0] == captions[1] and len(captions[0]) == 10
    assert describe_distances(a, b, SPACE) == describe_distances(b, a, SPACE)
