"""Pictures of attention: white where a token looks most, the image where it does not."""

from __future__ import annotations

import numpy as np
from PIL import Image

from eval.sampling.attention import AttentionMaps
from eval.sampling.attention_picture import CELL, GAP, HEADER, LABEL, SHADE, colour_map, draw_attention


def test_a_map_goes_from_the_image_over_red_to_white() -> None:
    map_HW = np.array([[0.0, 0.1], [0.2, 0.3]], np.float32)
    grey = np.full((2, 2, 1), 60.0)
    found = colour_map(map_HW, (2, 2), grey)
    assert found[1, 1].tolist() == [255, 255, 255]
    assert found[0, 0].tolist() == [60, 60, 60]
    red, yellow = found[0, 1].astype(int), found[1, 0].astype(int)
    assert red[0] > 200 and red[1] < 60 and red[2] < 60
    assert yellow[0] == 255 and yellow[1] > 200 and yellow[2] < 60
    assert colour_map(np.zeros((2, 2), np.float32), (2, 2), grey).tolist() == [[[60] * 3] * 2] * 2


def test_rows_are_tokens_and_columns_times() -> None:
    maps_KLHW = np.zeros((2, 3, 4, 4), np.float32)
    maps_KLHW[0, 1, 0, 0] = maps_KLHW[1, 2, 3, 3] = 0.5  # token 1 looks at the top left at first, token 2 ...
    image = Image.new("RGB", (16, 16), (0, 100, 0))
    maps = {"base": AttentionMaps(maps_KLHW, [(1.0, 0.6), (0.5, 0.1)])}
    sheet = np.asarray(draw_attention(["a", "red", "circle"], {"base": image}, maps))
    grey = round(int(image.convert("L").getpixel((0, 0))) * SHADE)  # type: ignore[arg-type]

    def cell(row: int, column: int) -> np.ndarray:
        top, left = HEADER + row * (CELL + GAP), LABEL + column * (CELL + GAP)
        return sheet[top : top + CELL, left : left + CELL]

    assert cell(1, 0)[:24, :24].min() == 255 and abs(int(cell(1, 0)[30, 30, 0]) - grey) <= 1
    assert cell(2, 1)[-24:, -24:].min() == 255
    assert all(np.ptp(cell(row, column)) <= 1 for row, column in [(0, 0), (0, 1), (1, 1), (2, 0)])
    assert (cell(0, 2) == [0, 100, 0]).all()  # the image stands behind the last column
    assert (sheet[HEADER : HEADER + CELL, :LABEL] < 128).any()  # the token's text


def test_a_token_that_the_tokenizer_adds_to_no_prompt_has_no_row() -> None:
    image = Image.new("RGB", (16, 16))
    for count in (0, 1):
        maps = {"base": AttentionMaps(np.ones((1, count, 2, 2), np.float32), [(1.0, 0.0)])}
        assert draw_attention(["a", "</s>"][-count - 1 :], {"base": image}, maps).height == HEADER + CELL + GAP


def test_stages_stand_below_each_other() -> None:
    maps = AttentionMaps(np.ones((1, 2, 2, 4), np.float32), [(1.0, 0.0)])
    wide = Image.new("RGB", (64, 32))
    one = draw_attention(["a", "b"], {"base": wide}, {"base": maps})
    two = draw_attention(["a", "b"], {"base": wide, "sr": wide}, {"base": maps, "sr": maps})
    assert two.height == 2 * one.height and two.width == one.width
    assert one.height == HEADER + 2 * (CELL // 2 + GAP)
