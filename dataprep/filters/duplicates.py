"""Filters that drop repeated pictures: of each set of duplicates the first occurrence stays."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

HASH_BITS = 64
# Rows with the same band value are compared all with all up to this number, beyond it each with the next ones only:
# some hashes (plain backgrounds) are so common that comparing all would take time quadratic in the rows.
BUCKET = 256
PIECE = 1 << 15  # pairs held at a time
MAX_GAIN = 1.2


class ExactDuplicates:
    """Drops rows whose stored file was seen before, byte by byte."""

    name = "exact_duplicate"

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        seen: set[str] = set()
        keep = np.ones(rows.num_rows, dtype=bool)
        for index, digest in enumerate(rows["sha256"].to_pylist()):
            keep[index] = digest not in seen
            seen.add(digest)
        return keep, "the same bytes as an earlier image"


class NearDuplicates:
    """Drops rows that look like an earlier kept one.

    Alike are two pictures whose perceptual hashes differ in at most ``distance`` bits (the same grey structure) and
    whose thumbnails are within ``colour_distance`` (the same colours in the same places, which the hash of a grey
    picture cannot tell); see `thumbnail_distance`.
    """

    name = "near_duplicate"

    def __init__(self, distance: int, colour_distance: float) -> None:
        self.distance, self.colour_distance = distance, colour_distance

    def verdict(self, rows: pa.Table) -> tuple[np.ndarray, str]:
        hash_N = rows["phash"].to_numpy()
        thumbnail_NDC = np.frombuffer(b"".join(rows["thumbnail"].to_pylist()), np.uint8).reshape(rows.num_rows, -1, 3)
        alike: set[tuple[int, int]] = set()  # (later, earlier)
        for left_P, right_P in candidate_pairs(hash_N, self.distance):
            same_P = thumbnail_distance(thumbnail_NDC[left_P], thumbnail_NDC[right_P]) <= self.colour_distance
            later_P, earlier_P = np.maximum(left_P, right_P)[same_P], np.minimum(left_P, right_P)[same_P]
            alike.update(zip(later_P.tolist(), earlier_P.tolist(), strict=True))
        keep = np.ones(rows.num_rows, dtype=bool)
        for later, earlier in sorted(alike):
            keep[later] &= not keep[earlier]
        return keep, "looks like an earlier image"


def thumbnail_distance(left_PDC: np.ndarray, right_PDC: np.ndarray) -> np.ndarray:
    """How different uint8 thumbnails (P pairs, D cells, 3 channels) are: grey levels (P,) in their worst cell.

    A common factor within `MAX_GAIN` (the same picture lit otherwise) is taken out by least squares first; the worst
    cell, not the mean, because a small object that differs moves the mean as little as a new encoding does.
    """
    left_PDC, right_PDC = left_PDC.astype(np.float32), right_PDC.astype(np.float32)
    energy_P = np.maximum((right_PDC**2).sum(axis=(1, 2)), 1e-6)
    gain_P = np.clip((left_PDC * right_PDC).sum(axis=(1, 2)) / energy_P, 1 / MAX_GAIN, MAX_GAIN)
    delta_PDC = left_PDC - gain_P[:, None, None] * right_PDC
    return np.sqrt((delta_PDC**2).mean(axis=2)).max(axis=1, initial=0.0)


def candidate_pairs(hash_N: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices within ``distance`` bits of uint64 ``hash_N``, in pieces of at most `PIECE`.

    The 64 bits are cut into distance + 1 bands: two hashes that differ in at most ``distance`` bits agree in a band,
    so only rows that agree in a band, or altogether, are compared. Every pair is found, but in buckets above `BUCKET`.
    """
    bands = np.array_split(np.arange(HASH_BITS), distance + 1)
    masks = [np.uint64(2**64 - 1), *(np.uint64(sum(1 << int(bit) for bit in band)) for band in bands)]
    seen: list[tuple[np.uint64, np.ndarray]] = []  # (mask, which rows were compared with their whole bucket)
    for mask in masks:
        band_N = hash_N & mask
        order_N = np.lexsort((hash_N, band_N))  # within a band value by hash: the most alike stand together
        starts = np.flatnonzero(np.diff(band_N[order_N], prepend=~band_N[order_N[:1]]))
        sizes = np.diff(starts, append=len(order_N))
        room_N = np.repeat(starts + sizes, sizes) - np.arange(len(order_N))  # rows of the bucket from here on
        for offset in range(1, min(int(sizes.max(initial=1)), BUCKET)):
            for position_P in _pieces(np.flatnonzero(room_N > offset)):
                left_P, right_P = order_N[position_P], order_N[position_P + offset]
                differing_P = hash_N[left_P] ^ hash_N[right_P]
                new_P = np.bitwise_count(differing_P) <= distance
                for earlier, whole_N in seen:
                    new_P &= ((differing_P & earlier) != 0) | ~whole_N[left_P]
                if new_P.any():
                    yield left_P[new_P], right_P[new_P]
        whole_N = np.empty(len(hash_N), dtype=bool)
        # Rows with one and the same hash are neighbours in every band: what the first pass left out, others would too.
        whole_N[order_N] = np.repeat(sizes <= BUCKET, sizes) | (not seen)
        seen.append((mask, whole_N))


def _pieces(positions: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(positions), PIECE):
        yield positions[start : start + PIECE]
