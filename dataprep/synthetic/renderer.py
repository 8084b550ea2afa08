"""Renders claims: exact places, antialiased, never overlapping, readable when averaged down to 16x16 pixels.

Lengths are shares of the image side, y points down. "Radius" is that of a circle; squares and triangles are scaled to
about the same area (`HALF` gives their half width and half height).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from dataprep.synthetic.grammar import DARK, RADIUS, WIDE_PALETTE, Claim, ObjectGroup, is_drawable, render_caption

# Half width and half height of each shape, as a multiple of its radius.
HALF = {"circle": 1.0, "square": 0.886, "triangle": 1.1}
MARGIN, GAP = 0.025, 0.1  # minimum distance to the image edge, and between two related groups
RIM = 0.38  # rim of a hollow shape, as a share of the radius: 1.4 pixels at 16x16
POSITION_OFFSET = {
    "left": (-0.24, 0.0),
    "right": (0.24, 0.0),
    "top": (0.0, -0.24),
    "bottom": (0.0, 0.24),
    "centre": (0.0, 0.0),
}
# Relative to the second group: axis (0: x, 1: y), and whether the first group has the smaller coordinate.
RELATION_AXIS = {"left of": (0, True), "right of": (0, False), "above": (1, True), "below": (1, False)}


@dataclass(frozen=True)
class PlacedShape:
    """One object with its centre (of its bounding box), radius and RGB colour in [0, 255]."""

    x: float
    y: float
    radius: float
    rgb: tuple[float, float, float]
    shape: str
    texture: str


def draw_scene(claim: Claim, rng: np.random.Generator, size: int) -> np.ndarray:
    """Renders ``claim`` as uint8 RGB (size, size, 3). Place, size, hue and background vary with ``rng``.

    A size that is not stated is drawn as either. Raises ValueError if it is not `grammar.is_drawable`.
    """
    if not is_drawable(claim):
        raise ValueError(
            f"{render_caption(claim)!r} is too crowded to be drawn; use fewer or smaller objects, textures on large"
        )
    placed = place_shapes(claim, rng)
    light = rng.uniform(238, 250)
    row = np.tile((light + rng.uniform(-5, 5, 3)).astype(np.float32), size)
    canvas_HWC = np.tile(row, size).reshape(size, size, 3)  # faster than broadcasting three values
    for item in placed:
        _paint_shape(canvas_HWC, item)
    canvas_HWC += 0.5  # colours and their mixtures are from 0 to 255
    return canvas_HWC.astype(np.uint8)


# ---------------------------------------------------------------------------------------------- layout


def place_shapes(claim: Claim, rng: np.random.Generator) -> list[PlacedShape]:
    """Places the objects of ``claim``, first group first; none overlaps another or leaves the image."""
    radii = _choose_radii(claim, rng)
    if claim.second is not None and claim.relation is not None:
        return _place_related(claim, radii, rng)
    group, radius = claim.first, radii[0]
    if group.count == 1:
        return [_place_shape(group, _place_single(claim, radius, rng), radius, rng)]
    # Two large objects only fit on a diagonal; small ones also in a row or column.
    spot = int(rng.integers(4 if radius < RADIUS["large"] * 0.8 else 2))
    near, far = 0.27, 0.73
    if group.count == 3:
        corners = [(near, near), (near, far), (far, near), (far, far)]
        del corners[int(rng.integers(4))]
    elif spot < 2:
        corners = [(near, near), (far, far)] if spot == 0 else [(near, far), (far, near)]
    else:
        across = rng.uniform(0.36, 0.64)
        corners = [(near, across), (far, across)] if spot == 2 else [(across, near), (across, far)]
    return [
        _place_shape(group, (x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03)), radius, rng)
        for x, y in corners
    ]


def _choose_radii(claim: Claim, rng: np.random.Generator) -> list[float]:
    """Chooses a radius per group: of its stated size, or of one that fits; varied by 6%."""
    stated: list[str | None] = ["large" if group.texture != "solid" else group.size for group in claim.groups]
    sizes: list[str] = []
    for index, group in enumerate(claim.groups):
        crowded = group.count == 3 or (claim.second is not None and (group.count > 1 or "large" in stated))
        free = "small" if crowded or rng.random() < 0.5 else "large"
        stated[index] = stated[index] or free
        sizes.append(stated[index] or free)
    radii = [RADIUS[size] * rng.uniform(0.94, 1.06) for size in sizes]
    return [
        min(radius, 0.215) if group.count == 2 else radius for radius, group in zip(radii, claim.groups, strict=True)
    ]


def _place_single(claim: Claim, radius: float, rng: np.random.Generator) -> tuple[float, float]:
    """Places a single object: at its position, or anywhere if none is stated."""
    if claim.position is None:
        return rng.uniform(0.2, 0.8), rng.uniform(0.2, 0.8)
    along, across = (0.04, 0.09) if radius < 0.18 else (0.02, 0.06)
    if claim.position == "centre":
        across = along
    dx, dy = POSITION_OFFSET[claim.position]
    spread_x, spread_y = (along, across) if dx else (across, along)
    return 0.5 + dx + rng.uniform(-spread_x, spread_x), 0.5 + dy + rng.uniform(-spread_y, spread_y)


def _place_related(claim: Claim, radii: list[float], rng: np.random.Generator) -> list[PlacedShape]:
    """Places both groups along the axis of the relation, each near its edge; a pair is placed across that axis."""
    axis, first_is_low = RELATION_AXIS[str(claim.relation)]
    halves = [radius * HALF[group.shape] for radius, group in zip(radii, claim.groups, strict=True)]
    slack = min(max(1 - 2 * sum(halves) - 2 * MARGIN - GAP, 0.0) / 2, 0.14)
    placed = []
    for group, radius, half, low in zip(claim.groups, radii, halves, (first_is_low, not first_is_low), strict=True):
        along = MARGIN + half + rng.uniform(0, slack)
        along = along if low else 1 - along
        spread = 0.12 if radius < 0.18 else 0.08
        middle = 0.5 + rng.uniform(-spread, spread) * (1 if group.count == 1 else 0.4)
        for across in (middle,) if group.count == 1 else (middle - 0.22, middle + 0.22):
            placed.append(_place_shape(group, (along, across) if axis == 0 else (across, along), radius, rng))
    return placed


def _place_shape(
    group: ObjectGroup, centre: tuple[float, float], radius: float, rng: np.random.Generator
) -> PlacedShape:
    """Places an object near ``centre``, moved inwards to stay in the image, with its colour varied."""
    least = radius * HALF[group.shape] + MARGIN
    x, y = (min(max(value, least), 1 - least) for value in centre)
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in WIDE_PALETTE[group.colour]))
    hue, saturation = (hue + rng.uniform(-0.012, 0.012)) % 1, min(saturation * rng.uniform(0.93, 1.05), 1)
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, min(value * rng.uniform(0.93, 1.05), 1))
    return PlacedShape(x, y, radius, (red * 255, green * 255, blue * 255), group.shape, group.texture)


# ---------------------------------------------------------------------------------------------- paint


def _paint_shape(canvas_HWC: np.ndarray, item: PlacedShape) -> None:
    """Paints ``item`` over ``canvas_HWC`` (float32 RGB, square), within its bounding box."""
    size = canvas_HWC.shape[0]
    reach = item.radius * HALF[item.shape] + 1 / size
    left, right = (round(np.clip((item.x + sign * reach) * size, 0, size)) for sign in (-1, 1))
    top, bottom = (round(np.clip((item.y + sign * reach) * size, 0, size)) for sign in (-1, 1))
    x_W = (np.arange(left, right, dtype=np.float32) + 0.5) / size - np.float32(item.x)
    y_H1 = ((np.arange(top, bottom, dtype=np.float32) + 0.5) / size - np.float32(item.y))[:, None]
    distance_HW = outline_distance(item.shape, x_W, y_H1, item.radius) * size
    cover_HW = np.clip(0.5 - distance_HW, 0, 1)
    if item.texture == "hollow":
        cover_HW = cover_HW - np.clip(0.5 - distance_HW - RIM * item.radius * size, 0, 1)
    rgb_HWC = np.broadcast_to(np.asarray(item.rgb, np.float32), (*cover_HW.shape, 3))
    if item.texture == "striped":
        # Dark if y / radius is within 0.25 of an odd multiple of 0.5: bands of 1.8 pixels at 16x16.
        to_band_H1 = (0.25 - np.abs((y_H1 / item.radius) % 1 - 0.5)) * item.radius * size
        dark_H11 = np.clip(0.5 + to_band_H1, 0, 1)[:, :, None]
        rgb_HWC = rgb_HWC * (1 - dark_H11) + np.asarray(DARK, np.float32) * dark_H11
    box_HWC = canvas_HWC[top:bottom, left:right]
    box_HWC += (rgb_HWC - box_HWC) * cover_HW[:, :, None]


def outline_distance(shape: str, x_W: np.ndarray, y_H1: np.ndarray, radius: float) -> np.ndarray:
    """Returns the signed distance (H, W) to the outline, negative inside; exact next to straight parts.

    ``x_W`` and ``y_H1`` are relative to the centre.
    """
    half = radius * HALF[shape]
    if shape == "circle":
        return np.hypot(x_W, y_H1) - half
    if shape == "square":
        return np.maximum(np.abs(x_W), np.abs(y_H1)) - half
    # Isosceles, apex up, as wide as high: base and two sides of slope 2.
    return np.maximum(y_H1 - half, (2 * np.abs(x_W) - y_H1 - half) / np.sqrt(5))
