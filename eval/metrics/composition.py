"""Composition checker: which attributes of a claim does an image of a scene show?

No learned model: foreground by distance from the background, connected components, a mix of palette colours by least
squares, and the best of three templates for the shape. `find_shapes` reads, `judge_shapes` compares, `check_image` does
both.

Shape legend: N pixels, K palette colours and dark, C channels, H W height and width of `SIDE`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import cv2
import numpy as np

from dataprep.synthetic.grammar import (
    ATTRIBUTES,
    DARK,
    PALETTE,
    RADIUS,
    WIDE_PALETTE,
    Claim,
    ObjectGroup,
    find_stated_attributes,
)
from dataprep.synthetic.renderer import outline_distance

Palette = Mapping[str, tuple[int, int, int]]
SIDE = 64  # every image is resized to this
MIN_AREA = 60  # pixels of SIDE x SIDE: a quarter of a small object; smaller components are noise
MAX_OBJECTS = 6  # the largest ones; any more make the count wrong anyway
COVERED = 0.5  # share of a pixel that an object must cover for the pixel to belong to it
PURE = 0.97  # least cosine to a palette colour's direction for a pixel to be of that colour alone
SIZE_BORDER = float(np.sqrt(RADIUS["small"] * RADIUS["large"]))
CENTRE_BORDER = 0.13  # greatest distance from the middle of a single object in the centre
MAX_MISFIT = 0.3  # difference from the best template, as a share of the area; beyond, there is no shape
HOLLOW_BELOW, DARK_ABOVE, DARK_RIPPLE = 0.6, 0.2, 0.08
# Per shape of radius 1: area, distance of the centroid below the middle, radius of the largest circle within.
AREA = {"circle": float(np.pi), "square": 3.14, "triangle": 2.42}
DROP = {"circle": 0.0, "square": 0.0, "triangle": 1.1 / 3}
INNER = {"circle": 1.0, "square": 0.886, "triangle": 0.68}


@dataclass(frozen=True)
class FoundShape:
    """One object; x and y are the middle of its bounding box as shares of the side, y pointing down."""

    x: float
    y: float
    radius: float
    colour: str
    shape: str  # "none" where no template fits
    size: str
    texture: str


# ---------------------------------------------------------------------------------------------- judging


def check_image(image_HWC: np.ndarray, claim: Claim, palette: Palette | None = None) -> dict[str, bool]:
    """Returns {attribute that ``claim`` states: the image shows it}, and "all": it shows every one.

    ``image_HWC``: uint8 RGB, square, of any size; raises ValueError for anything else. ``palette``: the colours that an
    object may have; by default those of the corpus, and the claim's.
    """
    if palette is None:
        known = all(group.colour in PALETTE for group in claim.groups)
        palette = PALETTE if known else WIDE_PALETTE
    return judge_shapes(find_shapes(image_HWC, palette), claim)


def judge_shapes(found: Sequence[FoundShape], claim: Claim) -> dict[str, bool]:
    """`check_image` for objects already found. Each object is compared with the group that it resembles most.

    count: every group has the stated number of objects. colour, shape, size, texture: every object is as stated of its
    group, and no group is empty. position: of the largest object. relation: of the groups' mean positions.
    """
    largest = sorted(found, key=lambda item: -item.radius)[:MAX_OBJECTS]
    groups = _assign(largest, claim)
    whole = all(groups)
    results = {"count": len(found) == len(largest) and all(map(_has_count, groups, claim.groups))}
    for name in ("colour", "shape", "size", "texture"):
        results[name] = whole and all(
            getattr(item, name) == getattr(group, name)
            for items, group in zip(groups, claim.groups, strict=True)
            if _states(group, name)
            for item in items
        )
    results["position"] = whole and _position(largest[0]) == claim.position
    results["relation"] = whole and len(groups) == 2 and _relation(groups[0], groups[1]) == claim.relation
    kept = {name: results[name] for name in ATTRIBUTES if name in find_stated_attributes(claim)}
    return kept | {"all": all(kept.values())}


def _states(group: ObjectGroup, name: str) -> bool:
    return getattr(group, name) is not None and (name != "texture" or group.texture != "solid")


def _has_count(items: Sequence[FoundShape], group: ObjectGroup) -> bool:
    return len(items) == group.count


def _assign(found: Sequence[FoundShape], claim: Claim) -> list[list[FoundShape]]:
    """Returns the objects of each group, by the assignment under which most of the claim is true."""
    if claim.second is None:
        return [list(found)]

    def split(owner: tuple[int, ...]) -> list[list[FoundShape]]:
        return [[item for item, index in zip(found, owner, strict=True) if index == group] for group in (0, 1)]

    def score(owner: tuple[int, ...]) -> tuple[float, ...]:
        groups = split(owner)
        pairs = [(item, claim.groups[index]) for item, index in zip(found, owner, strict=True)]
        colours = sum(item.colour == group.colour for item, group in pairs)
        others = sum(
            getattr(item, name) == getattr(group, name)
            for item, group in pairs
            for name in ("shape", "size", "texture")
            if _states(group, name)
        )
        related = all(groups) and _relation(groups[0], groups[1]) == claim.relation
        return all(groups), 2 * colours + others, sum(map(_has_count, groups, claim.groups)), related

    return split(max(product((0, 1), repeat=len(found)), key=score))


def _position(item: FoundShape) -> str:
    dx, dy = item.x - 0.5, item.y - 0.5
    if max(abs(dx), abs(dy)) < CENTRE_BORDER:
        return "centre"
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "top" if dy < 0 else "bottom"


def _relation(first: Sequence[FoundShape], second: Sequence[FoundShape]) -> str:
    dx = float(np.mean([item.x for item in first]) - np.mean([item.x for item in second]))
    dy = float(np.mean([item.y for item in first]) - np.mean([item.y for item in second]))
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


# ---------------------------------------------------------------------------------------------- totals


def measure_chance(examples: Sequence[tuple[np.ndarray, Claim]], rotations: int = 20) -> dict[str, float]:
    """Returns {attribute: accuracy} of a model that ignores its prompts.

    Each image is judged by the claims of up to ``rotations`` other prompts of the list.
    """
    shapes = [find_shapes(image_HWC) for image_HWC, _ in examples]
    claims = [claim for _, claim in examples]
    count = len(claims)
    steps = sorted({1 + step * (count - 1) // rotations for step in range(rotations)}) if count > 1 else []
    found = sum_checks([judge_shapes(shapes[i], claims[(i + step) % count]) for step in steps for i in range(count)])
    return {name: float(entry["accuracy"]) for name, entry in found.items()}


def sum_checks(results: Sequence[Mapping[str, bool]]) -> dict[str, dict[str, float]]:
    """Sums up results of `check_image`: {attribute: {"accuracy": share correct, "n": images that state it}}."""
    found: dict[str, dict[str, float]] = {}
    for name in (*ATTRIBUTES, "all"):
        values = [result[name] for result in results if name in result]
        if values:
            found[name] = {"accuracy": sum(values) / len(values), "n": len(values)}
    return found


# ---------------------------------------------------------------------------------------------- reading


def find_shapes(image_HWC: np.ndarray, palette: Palette = PALETTE) -> list[FoundShape]:
    """Returns the objects of an image (uint8 RGB, square, any size), in the order of their first pixel."""
    if image_HWC.ndim != 3 or image_HWC.shape[2] != 3 or image_HWC.dtype != np.uint8:
        raise ValueError(f"image of {image_HWC.dtype} {image_HWC.shape}; give uint8 (height, width, 3)")
    interpolation = cv2.INTER_AREA if image_HWC.shape[0] > SIDE else cv2.INTER_CUBIC
    rgb_HWC = cv2.resize(image_HWC, (SIDE, SIDE), interpolation=interpolation)
    rgb_HWC = cv2.GaussianBlur(rgb_HWC, (0, 0), 0.7).astype(np.float32)
    edge_NC = np.concatenate([rgb_HWC[:2].reshape(-1, 3), rgb_HWC[-2:].reshape(-1, 3), rgb_HWC[:, :2].reshape(-1, 3)])
    edge_NC = np.concatenate([edge_NC, rgb_HWC[:, -2:].reshape(-1, 3)])
    light_C = np.median(edge_NC, axis=0)
    # Each pixel's difference from the background, projected on the direction to each palette colour.
    direction_KC = np.asarray([*palette.values(), DARK], np.float32) - light_C
    away_HWC = rgb_HWC - light_C
    # In a bad image the background may be a palette colour itself: that direction has no length.
    length_K = np.maximum(np.linalg.norm(direction_KC, axis=1), 1)
    along_HWK = away_HWC @ (direction_KC / length_K[:, None]).T
    label_HW = along_HWK.argmax(axis=2)
    full_HW = length_K[label_HW]
    cover_HW = np.clip(along_HWK.max(axis=2) / full_HW, 0, 1)
    pure_HW = along_HWK.max(axis=2) > PURE * np.linalg.norm(away_HWC, axis=2)
    masks = _split_components(cover_HW > COVERED, label_HW, pure_HW, len(palette))
    return [_describe_shape(mask_HW, masks, cover_HW, away_HWC, direction_KC, list(palette)) for mask_HW in masks]


def _split_components(fore_HW: np.ndarray, label_HW: np.ndarray, pure_HW: np.ndarray, colours: int) -> list[np.ndarray]:
    """Returns boolean masks of the objects; a component of two palette colours is split by colour.

    Only pure pixels count for a second colour: at the edges of blurred stripes, yellow mixed with dark is close to red.
    """
    masks = []
    for mask_HW in _find_connected(fore_HW):
        counts = np.bincount(label_HW[mask_HW & pure_HW], minlength=colours + 1)[:colours]
        big = [colour for colour in range(colours) if counts[colour] > max(MIN_AREA, 0.25 * counts.sum())]
        parts = [part for colour in big for part in _find_connected(mask_HW & (label_HW == colour))]
        masks += parts if len(big) > 1 else [mask_HW]
    return masks


def _find_connected(mask_HW: np.ndarray) -> list[np.ndarray]:
    count, index_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=4)
    masks = [index_HW == number for number in range(1, count)]
    return [mask for mask in masks if mask.sum() >= MIN_AREA]


def _describe_shape(
    mask_HW: np.ndarray,
    masks: Sequence[np.ndarray],
    cover_HW: np.ndarray,
    away_HWC: np.ndarray,
    direction_KC: np.ndarray,
    colours: Sequence[str],
) -> FoundShape:
    """Returns the object of one component mask."""
    points = np.argwhere(mask_HW)[:, ::-1].astype(np.int32)
    hull_HW = cv2.fillConvexPoly(np.zeros((SIDE, SIDE), np.uint8), cv2.convexHull(points), 1)
    # Soft outline: 1 within the hull, holes included, the pixel's own cover around it, 0 on other objects.
    near_HW = cv2.dilate(hull_HW, np.ones((5, 5), np.uint8)).astype(bool)
    core_HW = cv2.erode(hull_HW, np.ones((3, 3), np.uint8)).astype(bool)
    for other_HW in masks:
        if other_HW is not mask_HW:
            near_HW &= ~cv2.dilate(other_HW.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    filled_HW = np.where(core_HW, 1, np.where(near_HW | mask_HW, cover_HW, 0)).astype(np.float32)
    shape, radius, inner_HW = _fit_template(filled_HW)
    number, dark, ripple = _unmix_colours(mask_HW, away_HWC, direction_KC)
    colour = colours[number]
    texture = "solid"
    if dark > DARK_ABOVE and ripple > DARK_RIPPLE:
        texture = "striped"
    elif inner_HW.any() and cover_HW[inner_HW].mean() < HOLLOW_BELOW:
        texture = "hollow"
    (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0) + 1
    size = "large" if radius > SIZE_BORDER else "small"
    x, y = float(left + right) / 2 / SIDE, float(top + bottom) / 2 / SIDE
    return FoundShape(x, y, radius, colour, shape, size, texture)


def _fit_template(filled_HW: np.ndarray) -> tuple[str, float, np.ndarray]:
    """Returns shape, radius as a share of the side, and the mask of the inner part, for a soft outline in [0, 1]."""
    area = float(filled_HW.sum())
    rows_H, columns_W = np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5
    y = float(filled_HW.sum(axis=1) @ rows_H) / area
    x = float(filled_HW.sum(axis=0) @ columns_W) / area
    best = ("none", float("inf"), 0.0, 0.0)
    for shape in AREA:
        radius = float(np.sqrt(area / AREA[shape]))
        outside_HW = outline_distance(shape, columns_W - x, (rows_H - y + DROP[shape] * radius)[:, None], radius)
        template_HW = np.clip(0.5 - outside_HW, 0, 1).astype(np.float32)
        # Small images are enlarged and have round corners: the template is blurred as well.
        for blur in (0.7, 2.0, 3.0):
            misfit = float(np.abs(cv2.GaussianBlur(template_HW, (0, 0), blur) - filled_HW).sum()) / area
            if misfit < best[1]:
                best = (shape, misfit, radius, y - DROP[shape] * radius)
    shape, misfit, radius, middle = best
    to_edge_HW = outline_distance(shape, columns_W - x, (rows_H - middle)[:, None], radius)
    inner_HW = to_edge_HW < -0.7 * INNER[shape] * radius
    return shape if misfit < MAX_MISFIT else "none", radius / SIDE, inner_HW


def _unmix_colours(mask_HW: np.ndarray, away_HWC: np.ndarray, direction_KC: np.ndarray) -> tuple[int, float, float]:
    """Returns the number of a component's colour, its share of dark, and how much that share varies from row to row.

    The mean difference from the background is a mix of one palette colour and dark, by least squares. Averages of
    pixels keep the mix, so the result is the same at every resolution.
    """
    best = (float("inf"), 0)
    mean_C = away_HWC[mask_HW].mean(axis=0)
    for colour in range(len(direction_KC) - 1):
        basis_C2 = direction_KC[[colour, -1]].T
        share_2 = np.clip(np.linalg.lstsq(basis_C2, mean_C, rcond=None)[0], (0.05, 0), None)
        best = min(best, (float(np.square(basis_C2 @ share_2 - mean_C).sum()), colour))
    colour = best[1]
    inverse_2C = np.linalg.pinv(direction_KC[[colour, -1]].T)
    share_HW2 = np.clip(away_HWC @ inverse_2C.T, 0, None)
    share_HW2[~mask_HW] = 0
    rows_H2 = share_HW2.sum(axis=1)
    rows_H2 = rows_H2[mask_HW.sum(axis=1) > 3]
    total_2 = rows_H2.sum(axis=0)
    by_row_H = rows_H2[:, 1] / np.maximum(rows_H2.sum(axis=1), 1e-6)
    ripple = float(by_row_H.std()) if len(by_row_H) else 0.0
    return colour, float(total_2[1] / max(total_2.sum(), 1e-6)), ripple
