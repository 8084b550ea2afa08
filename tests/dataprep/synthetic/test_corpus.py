"""The embedded corpus and its planted trouble."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dataprep.synthetic.config import TROUBLES, ScenesConfig, TroubleRates
from dataprep.synthetic.corpus import BOILERPLATE, build_file, build_scene, list_scenes
from dataprep.synthetic.grammar import Claim, find_differences, is_held_out, parse_caption

CONFIG = ScenesConfig(count=1500, image_size=64)


NO_TROUBLE = TroubleRates(**dict.fromkeys(TROUBLES, 0.0))


def test_rows_depend_on_config_and_seed_only() -> None:
    table = list_scenes(CONFIG, 5)
    assert table.equals(list_scenes(CONFIG, 5)) and not table.equals(list_scenes(CONFIG, 6))
    assert table.column_names == ["url", "caption", "truth"] and table.num_rows == CONFIG.count
    assert list_scenes(CONFIG, 5, 100, 120).equals(table.slice(100, 20))
    assert len(set(table["url"].to_pylist())) == CONFIG.count


def test_every_trouble_is_planted_at_its_rate_and_is_what_it_says() -> None:
    planted = [build_scene(CONFIG, 5, index) for index in range(CONFIG.count)]
    counts = Counter(row.trouble for row in planted)
    for kind, rate in CONFIG.trouble:
        assert 0.4 * rate < counts[kind] / CONFIG.count < 2 * rate, kind
    for row in planted:
        said = parse_caption(row.caption)
        assert not is_held_out(row.claim)
        assert (row.of is not None) == (row.trouble in ("exact_duplicate", "near_duplicate", "wrong_caption"))
        assert row.of is None or planted[row.of].trouble is None
        if row.trouble == "wrong_caption":
            assert said and len(find_differences(row.claim, said)) >= 2
        elif row.trouble == "boilerplate":
            assert said is None
        else:
            assert said == row.claim
        if row.trouble in ("exact_duplicate", "near_duplicate"):
            assert row.of is not None and row.of < row.index and planted[row.of].claim == row.claim
    truth = json.loads(planted[0].truth)
    assert Claim.model_validate(truth["claim"]) == planted[0].claim and truth["trouble"] == planted[0].trouble
    assert all(parse_caption(text) is None for text in BOILERPLATE)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_bytes_of_each_trouble() -> None:
    of_kind = {row.trouble: row for row in (build_scene(CONFIG, 5, index) for index in range(300))}
    assert set(of_kind) == {None, *TROUBLES}
    data = {kind: build_file(CONFIG, 5, row) for kind, row in of_kind.items()}
    assert data == {kind: build_file(CONFIG, 5, row) for kind, row in of_kind.items()}
    assert data["dead_link"] is None
    for kind in ("truncated", "mislabelled"):
        with pytest.raises(OSError):
            decoded(data[kind] or b"")
    assert max(decoded(data["tiny"] or b"").shape[:2]) < 32
    height, width = decoded(data["extreme_aspect"] or b"").shape[:2]
    assert max(height, width) > 4 * min(height, width)
    for kind in ("exact_duplicate", "near_duplicate"):
        original = build_file(CONFIG, 5, build_scene(CONFIG, 5, of_kind[kind].of or 0)) or b""
        assert (data[kind] == original) == (kind == "exact_duplicate")
        resized = Image.fromarray(decoded(data[kind] or b"")).resize((64, 64))
        assert np.abs(np.asarray(resized, np.float32) - decoded(original)).mean() < 16
    for whole in (None, "wrong_caption", "boilerplate"):
        assert decoded(data[whole] or b"").shape == (64, 64, 3)


def test_an_untroubled_corpus() -> None:
    config = ScenesConfig(count=50, image_size=32, trouble=NO_TROUBLE)
    assert {build_scene(config, 0, index).trouble for index in range(50)} == {None}


def test_the_first_row_has_nothing_to_repeat() -> None:
    config = ScenesConfig(count=3, trouble=TroubleRates(**dict.fromkeys(TROUBLES, 0.0) | {"exact_duplicate": 0.9}))
    assert build_scene(config, 0, 0).trouble is None


def test_a_share_of_purple_changes_colours_alone() -> None:
    plain, purple = ScenesConfig(count=200), ScenesConfig(count=200, purple_share=0.5)
    pairs = [(build_scene(plain, 3, index), build_scene(purple, 3, index)) for index in range(200)]
    pairs = [(one, other) for one, other in pairs if one.trouble is None]
    changed = [(one, other) for one, other in pairs if one.claim != other.claim]
    assert 0.35 < len(changed) / len(pairs) < 0.65
    assert all(find_differences(one.claim, other.claim) <= {"colour"} for one, other in changed)
    assert all(("purple" in other.caption or "紫色" in other.caption) for _, other in changed)
