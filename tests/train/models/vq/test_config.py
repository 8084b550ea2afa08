"""Layouts of the autoencoder."""

from __future__ import annotations

import pytest

from dataprep.io.errors import UserError
from train.models.vq.config import PRESETS, vq_config


@pytest.mark.parametrize(("preset", "stride"), [("vq-256", 8), ("vq-tiny", 4), ("vq-micro", 4)])
def test_a_code_stands_for_a_square_of_pixels(preset: str, stride: int) -> None:
    assert vq_config(preset).stride() == stride


def test_fields_of_a_preset_are_replaced() -> None:
    assert vq_config("vq-tiny", {"widths": [8], "patch": 8}).stride() == 8
    assert vq_config("vq-tiny", {"codes": 7}) == PRESETS["vq-tiny"].model_copy(update={"codes": 7})


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(UserError, match="'vq-tny' is unknown; take one of vq-256, vq-tiny, vq-micro"):
        vq_config("vq-tny")
