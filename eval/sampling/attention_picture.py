"""Draws attention maps: a row for each token of the prompt, a column for each span of time, the image beside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eval.sampling.attention import AttentionMaps

CELL, GAP, LABEL, HEADER = 96, 6, 120, 34  # pixels
SHADE = 0.35  # of the image under a map


def draw_attention(
    pieces: Sequence[str], images: Mapping[str, Image.Image], maps: Mapping[str, AttentionMaps]
) -> Image.Image:
    """Returns a picture of where each stage looked for each of ``pieces``, the texts of the prompt's tokens.

    Pieces beyond the maps' tokens are left out: a tokenizer ends even the empty prompt, which has no token for stages.
    ``images`` and ``maps`` are by stage. A map is scaled to its own maximum, which white is; the number beside a token
    is its largest share of attention at any place and time.
    """
    blocks = [_draw_stage(name, pieces, images[name], maps[name]) for name in maps]
    sheet = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), "white")
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _draw_stage(name: str, pieces: Sequence[str], image: Image.Image, maps: AttentionMaps) -> Image.Image:
    width = max(1, round(CELL * image.width / max(image.size)))
    height = max(1, round(CELL * image.height / max(image.size)))
    pieces = pieces[: maps.maps_KLHW.shape[1]]
    columns, rows = len(maps.noise), len(pieces)
    size = (LABEL + (columns + 1) * (width + GAP), HEADER + max(1, rows) * (height + GAP))
    sheet, font = Image.new("RGB", size, "white"), ImageFont.load_default(11)
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 4), f"stage {name}", "black", font)
    small = image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    sheet.paste(small, (LABEL + columns * (width + GAP), HEADER))
    for column, (first, last) in enumerate(maps.noise):
        draw.text((LABEL + column * (width + GAP), 4), f"noise\n{first:.2f} to {last:.2f}", "black", font)
    grey = np.asarray(small.convert("L"), np.float32)[..., None] * SHADE
    for row, piece in enumerate(pieces):
        top = HEADER + row * (height + GAP)
        draw.text((4, top + 4), f"{piece}\n{float(maps.maps_KLHW[:, row].max()):.3f}", "black", font)
        for column in range(columns):
            cell = colour_map(maps.maps_KLHW[column, row], (width, height), grey)
            sheet.paste(Image.fromarray(cell), (LABEL + column * (width + GAP), top))
    return sheet


def colour_map(map_HW: np.ndarray, size: tuple[int, int], grey_HW1: np.ndarray) -> np.ndarray:
    """Returns a map over a grey image, uint8 (height, width, 3): from the image over red and yellow to white.

    ``size`` is (width, height), that of ``grey_HW1``, float in [0, 255].
    """
    heat = Image.fromarray((map_HW / max(float(map_HW.max()), 1e-12)).astype(np.float32))
    heat_HW1 = np.asarray(heat.resize(size, Image.Resampling.NEAREST))[..., None]
    ramp_HW3 = np.clip(heat_HW1 * 3 - np.arange(3), 0, 1) * 255
    return np.clip(grey_HW1 * (1 - heat_HW1) + ramp_HW3, 0, 255).astype(np.uint8)
