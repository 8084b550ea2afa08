"""Reads a picture of scenes and says which attributes of a claim it shows: count, colour, shape, size, place, texture.

No learned model: foreground by distance from the background, connected components, a mix of palette colours by least
squares, and the best of three templates for the shape. `find` reads, `judge` compares, `check` does both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from dataprep.grammar import ATTRIBUTES, DARK, PALETTE, RADIUS, Claim, ObjectGroup, stated

SIDE = 64  # every picture is read at this size
LEAST_AREA = 60  # pixels of SIDE x SIDE: a quarter of a small object; less is a speck
MOST_OBJECTS = 6  # of the largest only; what is beyond makes the count wrong anyway
COVERED = 0.5  # a pixel belongs to an object when the object covers at least this much of it
PURE = 0.97  # cosine to a palette colour's direction, from which a pixel is of that colour alone
SIZE_BORDER = float(np.sqrt(RADIUS["small"] * RADIUS["large"]))
CENTRE_BORDER = 0.13  # a single object farther than this from the middle is not in the centre
MISFIT = 0.3  # a blob that differs from the best template by more of its area has no shape
HOLLOW_BELOW, DARK_ABOVE, DARK_RIPPLE = 0.6, 0.2, 0.08
# Area of each shape with radius 1, its half height, and how far its centroid lies below its middle.
AREA = {"circle": float(np.pi), "square": 3.14, "triangle": 2.42}
HALF = {"circle": 1.0, "square": 0.886, "triangle": 1.1}
DROP = {"circle": 0.0, "square": 0.0, "triangle": 1.1 / 3}
INNER = {"circle": 1.0, "square": 0.886, "triangle": 0.68}  # radius of the largest circle within


@dataclass(frozen=True)
class Found:
    """One object of a picture; x and y are the middle of its bounding box as shares of the side, y pointing down."""

    x: float
    y: float
    radius: float
    colour: str
    shape: str  # "none" where no template fits
    size: str
    texture: str


# ---------------------------------------------------------------------------------------------- judging


def check(image_HWC: np.ndarray, claim: Claim) -> dict[str, bool]:
    """Which attributes that ``claim`` states the picture shows; "all" where every one of them.

    ``image_HWC``: uint8 RGB, square, of any size. ValueError for anything else.
    """
    return judge(find(image_HWC), claim)


def judge(found: Sequence[Found], claim: Claim) -> dict[str, bool]:
    """As `check`, of objects already read. Each object is held against the group that it resembles most.

    count: each group has as many objects as said. colour, shape, size, texture: every object has what is said of its
    group, and no group is empty. position: of the largest object. relation: of the groups' mean places.
    """
    largest = sorted(found, key=lambda item: -item.radius)[:MOST_OBJECTS]
    groups = _assign(largest, claim)
    whole = all(groups)
    results = {"count": len(found) == len(largest) and all(map(_count_right, groups, claim.groups))}
    for name in ("colour", "shape", "size", "texture"):
        results[name] = whole and all(
            getattr(item, name) == getattr(group, name)
            for items, group in zip(groups, claim.groups, strict=True)
            if _says(group, name)
            for item in items
        )
    results["position"] = whole and _position(largest[0]) == claim.position
    results["relation"] = whole and len(groups) == 2 and _relation(groups[0], groups[1]) == claim.relation
    kept = {name: results[name] for name in ATTRIBUTES if name in stated(claim)}
    return kept | {"all": all(kept.values())}


def _says(group: ObjectGroup, name: str) -> bool:
    return getattr(group, name) is not None and (name != "texture" or group.texture != "solid")


def _count_right(items: Sequence[Found], group: ObjectGroup) -> bool:
    return len(items) == group.count


def _assign(found: Sequence[Found], claim: Claim) -> list[list[Found]]:
    """The objects of each group: of all ways to deal them out, the one under which most of what is said is true."""
    if claim.second is None:
        return [list(found)]

    def deal(owner: tuple[int, ...]) -> list[list[Found]]:
        return [[item for item, index in zip(found, owner, strict=True) if index == group] for group in (0, 1)]

    def score(owner: tuple[int, ...]) -> tuple[float, ...]:
        groups = deal(owner)
        pairs = [(item, claim.groups[index]) for item, index in zip(found, owner, strict=True)]
        colours = sum(item.colour == group.colour for item, group in pairs)
        others = sum(
            getattr(item, name) == getattr(group, name)
            for item, group in pairs
            for name in ("shape", "size", "texture")
            if _says(group, name)
        )
        related = all(groups) and _relation(groups[0], groups[1]) == claim.relation
        return all(groups), 2 * colours + others, sum(map(_count_right, groups, claim.groups)), related

    return deal(max(product((0, 1), repeat=len(found)), key=score))


def _position(item: Found) -> str:
    dx, dy = item.x - 0.5, item.y - 0.5
    if max(abs(dx), abs(dy)) < CENTRE_BORDER:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _relation(first: Sequence[Found], second: Sequence[Found]) -> str:
    dx = float(np.mean([item.x for item in first]) - np.mean([item.x for item in second]))
    dy = float(np.mean([item.y for item in first]) - np.mean([item.y for item in second]))
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


# ---------------------------------------------------------------------------------------------- totals


def accuracies(examples: Sequence[tuple[np.ndarray, Claim]]) -> dict[str, dict[str, float]]:
    """{attribute: {"accuracy": share right, "n": pictures whose claim states it}}, "all" too; only where n > 0."""
    return tally([check(image_HWC, claim) for image_HWC, claim in examples])


def chance(examples: Sequence[tuple[np.ndarray, Claim]], rotations: int = 20) -> dict[str, float]:
    """What pictures of the same making would score had they ignored their prompts.

    Each picture is judged by the claims of up to ``rotations`` other prompts of the list: {attribute: accuracy}.
    """
    read = [find(image_HWC) for image_HWC, _ in examples]
    claims = [claim for _, claim in examples]
    count = len(claims)
    steps = sorted({1 + step * (count - 1) // rotations for step in range(rotations)}) if count > 1 else []
    found = tally([judge(read[i], claims[(i + step) % count]) for step in steps for i in range(count)])
    return {name: float(entry["accuracy"]) for name, entry in found.items()}


def tally(results: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Results of `check` added up: {attribute: {"accuracy", "n"}}."""
    found: dict[str, dict[str, float]] = {}
    for name in (*ATTRIBUTES, "all"):
        values = [result[name] for result in results if name in result]
        if values:
            found[name] = {"accuracy": sum(values) / len(values), "n": len(values)}
    return found


# ---------------------------------------------------------------------------------------------- reading


def find(image_HWC: np.ndarray) -> list[Found]:
    """The objects of a picture (uint8 RGB, square, any size), in the order of their first pixel."""
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
        raise ValueError(f"picture of {image_HWC.dtype} {image_HWC.shape}; give uint8 (height, width, 3)")
    interpolation = cv2.INTER_AREA if image_HWC.shape[0] > SIDE else cv2.INTER_CUBIC
    rgb_HWC = cv2.resize(image_HWC, (SIDE, SIDE), interpolation=interpolation)
    rgb_HWC = cv2.GaussianBlur(rgb_HWC, (0, 0), 0.7).astype(np.float32)
    edge_NC = np.concatenate([rgb_HWC[:2].reshape(-1, 3), rgb_HWC[-2:].reshape(-1, 3), rgb_HWC[:, :2].reshape(-1, 3)])
    edge_NC = np.concatenate([edge_NC, rgb_HWC[:, -2:].reshape(-1, 3)])
    light_C = np.median(edge_NC, axis=0)
    # Each pixel's difference from the background, along the way from the background to each palette colour.
    way_KC = np.asarray([*PALETTE.values(), DARK], np.float32) - light_C
    away_HWC = rgb_HWC - light_C
    # The background may be a palette colour itself, in a picture gone wrong: such a way has no length.
    length_K = np.maximum(np.linalg.norm(way_KC, axis=1), 1)
    along_HWK = away_HWC @ (way_KC / length_K[:, None]).T
    label_HW = along_HWK.argmax(axis=2)
    full_HW = length_K[label_HW]
    cover_HW = np.clip(along_HWK.max(axis=2) / full_HW, 0, 1)
    pure_HW = along_HWK.max(axis=2) > PURE * np.linalg.norm(away_HWC, axis=2)
    masks = _components(cover_HW > COVERED, label_HW, pure_HW)
    return [_read(mask_HW, masks, cover_HW, away_HWC, way_KC) for mask_HW in masks]


def _components(fore_HW: np.ndarray, label_HW: np.ndarray, pure_HW: np.ndarray) -> list[np.ndarray]:
    """Boolean masks of the objects; a component of two palette colours is parted into its colours.

    Only pure pixels speak for a second colour: yellow mixed with dark is near to red, at the edges of blurred stripes.
    """
    masks = []
    for mask_HW in _connected(fore_HW):
        counts = np.bincount(label_HW[mask_HW & pure_HW], minlength=len(PALETTE) + 1)[: len(PALETTE)]
        big = [colour for colour in range(len(PALETTE)) if counts[colour] > max(LEAST_AREA, 0.25 * counts.sum())]
        parts = [part for colour in big for part in _connected(mask_HW & (label_HW == colour))]
        masks += parts if len(big) > 1 else [mask_HW]
    return masks


def _connected(mask_HW: np.ndarray) -> list[np.ndarray]:
    count, index_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=4)
    masks = [index_HW == number for number in range(1, count)]
    return [mask for mask in masks if mask.sum() >= LEAST_AREA]


def _read(
    mask_HW: np.ndarray, masks: Sequence[np.ndarray], cover_HW: np.ndarray, away_HWC: np.ndarray, way_KC: np.ndarray
) -> Found:
    """The object of one component mask."""
    points = np.argwhere(mask_HW)[:, ::-1].astype(np.int32)
    hull_HW = cv2.fillConvexPoly(np.zeros((SIDE, SIDE), np.uint8), cv2.convexHull(points), 1)
    # Soft outline: full within the hull (its holes too), the pixel's own cover around it, nothing on other objects.
    near_HW = cv2.dilate(hull_HW, np.ones((5, 5), np.uint8)).astype(bool)
    core_HW = cv2.erode(hull_HW, np.ones((3, 3), np.uint8)).astype(bool)
    for other_HW in masks:
        if other_HW is not mask_HW:
            near_HW &= ~cv2.dilate(other_HW.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    filled_HW = np.where(core_HW, 1, np.where(near_HW | mask_HW, cover_HW, 0)).astype(np.float32)
    shape, radius, inner_HW = _fit(filled_HW)
    colour, dark, ripple = _mix(mask_HW, away_HWC, way_KC)
    texture = "solid"
    if dark > DARK_ABOVE and ripple > DARK_RIPPLE:
        texture = "striped"
    elif inner_HW.any() and cover_HW[inner_HW].mean() < HOLLOW_BELOW:
        texture = "hollow"
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0) + 1
    size = "large" if radius > SIZE_BORDER else "small"
    x, y = float(left + right) / 2 / SIDE, float(top + bottom) / 2 / SIDE
    return Found(x, y, radius, colour, shape, size, texture)


def _fit(filled_HW: np.ndarray) -> tuple[str, float, np.ndarray]:
    """Shape, radius as a share of the side, and the mask of the innermost part, from a soft outline in [0, 1]."""
    area = float(filled_HW.sum())
    rows_H, columns_W = np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5
    y = float(filled_HW.sum(axis=1) @ rows_H) / area
    x = float(filled_HW.sum(axis=0) @ columns_W) / area
    best = ("none", float("inf"), 0.0, 0.0)
    for shape in AREA:
        radius = float(np.sqrt(area / AREA[shape]))
        outside_HW = _distance(shape, columns_W - x, (rows_H - y + DROP[shape] * radius)[:, None], radius)
        template_HW = np.clip(0.5 - outside_HW, 0, 1).astype(np.float32)
        # Small pictures, blown up, have round corners: the template may be as blurred as they are.
        for blur in (0.7, 2.0, 3.0):
            misfit = float(np.abs(cv2.GaussianBlur(template_HW, (0, 0), blur) - filled_HW).sum()) / area
            if misfit < best[1]:
                best = (shape, misfit, radius, y - DROP[shape] * radius)
    shape, misfit, radius, middle = best
    to_edge_HW = _distance(shape, columns_W - x, (rows_H - middle)[:, None], radius)
    inner_HW = to_edge_HW < -0.7 * INNER[shape] * radius
    return shape if misfit < MISFIT else "none", radius / SIDE, inner_HW


def _distance(shape: str, x_W: np.ndarray, y_H1: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance (H, W) in pixels to the outline of ``shape`` at the origin, negative inside."""
    half = radius * HALF[shape]
    if shape == "circle":
        return np.hypot(x_W, y_H1) - half
    if shape == "square":
        return np.maximum(np.abs(x_W), np.abs(y_H1)) - half
    return np.maximum(y_H1 - half, (2 * np.abs(x_W) - y_H1 - half) / np.sqrt(5))


def _mix(mask_HW: np.ndarray, away_HWC: np.ndarray, way_KC: np.ndarray) -> tuple[str, float, float]:
    """The colour of a component, the share of dark in it, and how much that share varies from row to row.

    The mean difference from the background is a mix of one palette colour and dark, by least squares: averaging pixels
    keeps the mix, so that it reads the same at every resolution.
    """
    best = (float("inf"), 0)
    mean_C = away_HWC[mask_HW].mean(axis=0)
    for colour in range(len(PALETTE)):
        basis_C2 = way_KC[[colour, -1]].T
        share_2 = np.clip(np.linalg.lstsq(basis_C2, mean_C, rcond=None)[0], (0.05, 0), None)
        best = min(best, (float(np.square(basis_C2 @ share_2 - mean_C).sum()), colour))
    colour = best[1]
    inverse_2C = np.linalg.pinv(way_KC[[colour, -1]].T)
    share_HW2 = np.clip(away_HWC @ inverse_2C.T, 0, None)
    share_HW2[~mask_HW] = 0
    rows_H2 = share_HW2.sum(axis=1)
    rows_H2 = rows_H2[mask_HW.sum(axis=1) > 3]
    total_2 = rows_H2.sum(axis=0)
    by_row_H = rows_H2[:, 1] / np.maximum(rows_H2.sum(axis=1), 1e-6)
    ripple = float(by_row_H.std()) if len(by_row_H) else 0.0
    return list(PALETTE)[colour], float(total_2[1] / max(total_2.sum(), 1e-6)), ripple
