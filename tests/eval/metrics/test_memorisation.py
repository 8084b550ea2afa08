"""Near copies of training images: planted ones are found, fresh drawings are quiet; the parts against brute force."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.stats import fisher_exact

from dataprep.io.parquet import write_table
from dataprep.synthetic.grammar import sample_claim
from dataprep.synthetic.renderer import draw_scene
from eval.metrics.memorisation import (
    CopySearch,
    NearestImages,
    Pair,
    Queries,
    describe_copies,
    make_queries_table,
    probability_of_excess,
    read_pairs,
    read_queries,
    search_images,
    tile_distance,
)

SIZE = 64


def draw(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_scene(sample_claim(rng), rng, SIZE) for _ in range(count)]


class Small:
    """Features are an image of 8 x 8 pixels around grey."""

    def image_features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        small = np.stack([cv2.resize(image, (8, 8), interpolation=cv2.INTER_AREA).ravel() for image in images])
        rows = small.astype(np.float32) - 128
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def make_queries(images: Sequence[np.ndarray], own: Sequence[str | None] = ()) -> Queries:
    names = [f"prompt {number}|0" for number in range(len(images))]
    return Queries(names, Small().image_features(images), images, own)


def search(images: Sequence[np.ndarray], training: Sequence[np.ndarray], neighbours: int = 16) -> list[Pair]:
    found = NearestImages(make_queries(images), neighbours)
    named = ((str(number), image, "") for number, image in enumerate(training))
    assert search_images([found], iter(named), Small()) == len(training)
    return found.nearest()


def as_jpeg(image: np.ndarray) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return np.asarray(Image.open(buffer))


def describe(
    samples: Sequence[np.ndarray], held_out: Sequence[np.ndarray], training: list[np.ndarray]
) -> dict[str, Any]:
    pairs = [search(images, training) if len(images) else [] for images in (samples, held_out)]
    return describe_copies(CopySearch(pairs[0], pairs[1], "validation images", len(training), 0.06, "small", SIZE))


def test_planted_copies_are_found_and_fresh_drawings_are_quiet() -> None:
    training, fresh, held_out = draw(800, 1), draw(100, 2), draw(100, 3)
    quiet = describe(fresh, held_out, training)
    assert quiet["warning"] is None
    assert quiet["samples"]["exact"] == 0 and quiet["samples"]["share"] < 0.06
    rng = np.random.default_rng(0)
    changed = [as_jpeg(training[number]) for number in range(6)]
    for number in (9, 10):
        noisy = training[number] * 0.96 + rng.normal(0, 4, (SIZE, SIZE, 3))
        changed.append(np.clip(noisy, 0, 255).astype(np.uint8))
    copied = search(changed, training)
    assert [pair.training for pair in copied] == ["0", "1", "2", "3", "4", "5", "9", "10"]
    assert all(pair.distance <= 0.06 for pair in copied)
    found = describe([*changed, *fresh[8:]], held_out, training)
    assert sum(int(pair["training"]) <= 10 for pair in found["closest"]) >= 8
    counts = f"{found['samples']['copies']} of 100 samples are near copies of training images"
    assert found["warning"].startswith(counts) and found["samples"]["copies"] >= 8
    assert "of 100 validation images are" in found["warning"]


def test_a_single_exact_copy_warns() -> None:
    training, fresh = draw(200, 1), draw(60, 2)
    found = describe([training[7], *fresh], draw(60, 3), training)
    assert (found["samples"]["exact"], found["held_out"]["exact"]) == (1, 0)
    assert "near copies of training images" in found["warning"]
    copied = describe([training[7], *fresh], [training[9], *draw(60, 3)], training)  # a set with duplicates
    assert copied["warning"] is None
    alone = describe([training[7], *fresh], [], training)
    assert alone["held_out"] is None and "no held-out images to compare with" in alone["warning"]
    unlike = [image for image, pair in zip(fresh, search(fresh, training), strict=True) if pair.distance > 0.06]
    assert len(unlike) > 50 and describe(unlike, [], training)["warning"] is None
    nothing = describe([], [], training)
    assert nothing["samples"] == {} and nothing["warning"] is None and nothing["closest"] == []


def test_nearest_images_are_those_of_brute_force() -> None:
    samples, training = draw(12, 5), draw(200, 6)
    similar = Small().image_features(samples) @ Small().image_features(training).T
    found = search(samples, training, neighbours=5)
    for number, pair in enumerate(found):
        near = np.argsort(-similar[number])[:5]
        apart = {str(index): tile_distance(samples[number], training[index]) for index in near.tolist()}
        assert pair.training == min(apart, key=lambda name: apart[name])
        assert pair.distance == apart[pair.training]
        assert pair.cosine == pytest.approx(similar[number, int(pair.training)], abs=1e-5)


def test_shards_merge_to_the_whole(tmp_path: Path) -> None:
    samples, training = draw(9, 5), draw(120, 6)
    write_table(make_queries_table(make_queries(samples)), tmp_path / "queries.parquet", "features")
    queries = read_queries(str(tmp_path / "queries.parquet"))
    whole = NearestImages(queries, 4)
    for start in (80, 40, 0):
        part = NearestImages(queries, 4)
        names = [str(number) for number in range(start, start + 40)]
        search_images([part], iter([(name, training[int(name)], "") for name in names]), Small())
        whole.merge(read_pairs(part.to_table()))
    for pair, other in zip(whole.nearest(), search(samples, training, 4), strict=True):
        assert (pair.query, pair.training) == (other.query, other.training)
        assert pair.distance == pytest.approx(other.distance, abs=1e-6)


def test_a_training_image_does_not_find_itself() -> None:
    training = draw(30, 1)
    found = NearestImages(make_queries(training[:3], ["0", "1", "2"]), 3)
    search_images([found], iter([(str(n), image, "") for n, image in enumerate(training)]), Small())
    assert all(pair.training != str(number) for number, pair in enumerate(found.nearest()))
    assert all(pair.distance > 0 for pair in found.nearest())


def test_distance_of_tiles() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    spot = white.copy()
    spot[:2, :2] = 0
    assert tile_distance(white, spot) == 1
    assert tile_distance(white, white) == 0
    grey = np.full((8, 8, 3), 204, np.uint8)
    assert tile_distance(white, grey) == pytest.approx(0.2)
    assert tile_distance(white[:3, :2], spot[:3, :2]) == 1  # fewer pixels than tiles


@pytest.mark.parametrize(("hits", "count", "others", "other_count"), [(5, 40, 0, 40), (3, 17, 2, 60), (0, 5, 3, 9)])
def test_probability_of_excess_is_fishers(hits: int, count: int, others: int, other_count: int) -> None:
    table = [[hits, count - hits], [others, other_count - others]]
    expected = fisher_exact(table, alternative="greater").pvalue
    assert probability_of_excess(hits, count, others, other_count) == pytest.approx(expected)
