"""The drawings keep to the picture, the corpus is a pure function of (config, seed, index), the server serves it."""

import http.client
import io
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dataprep.drawing import HALF, draw, layout
from dataprep.grammar import Claim, differing, draw_claim, is_held_out, parse
from dataprep.scenes import BOILERPLATE, TROUBLES, ScenesConfig, TroubleRates, file_bytes, rows, scene, serve

CONFIG = ScenesConfig(count=1500, image_size=64)
NO_TROUBLE = TroubleRates(**dict.fromkeys(TROUBLES, 0.0))


def test_objects_stay_inside_and_apart() -> None:
    rng = np.random.default_rng(0)
    for number in range(600):
        placed = layout(draw_claim(rng, held_out=number % 3 == 0), rng)
        for item in placed:
            half = item.radius * HALF[item.shape]
            assert half <= item.x <= 1 - half and half <= item.y <= 1 - half
        for index, one in enumerate(placed):
            for other in placed[:index]:
                apart = one.radius * HALF[one.shape] + other.radius * HALF[other.shape]
                # Two triangles on a diagonal may share a corner of their boxes, not of themselves.
                assert max(abs(one.x - other.x), abs(one.y - other.y)) > apart - 0.1


def test_drawing_is_antialiased_and_deterministic() -> None:
    claim = parse("a large red circle in the centre")
    assert claim
    one, same, other = (draw(claim, np.random.default_rng(seed), 64) for seed in (1, 1, 2))
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8
    assert (one == same).all() and (one != other).any()
    assert len(np.unique(one.reshape(-1, 3), axis=0)) > 10


def test_a_drawing_at_another_size_is_the_same_scene() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        claim = draw_claim(rng)
        large, small = (draw(claim, np.random.default_rng(5), size) for size in (128, 32))
        shrunk = np.asarray(Image.fromarray(large).resize((32, 32), Image.Resampling.BOX), np.float32)
        assert np.abs(shrunk - small).mean() < 2


def test_a_crowded_claim_is_refused() -> None:
    claim = parse("three large red circles")
    assert claim
    with pytest.raises(ValueError, match="too crowded"):
        draw(claim, np.random.default_rng(0), 64)


def test_rates_that_add_up_to_too_much_are_refused() -> None:
    with pytest.raises(ValidationError, match="keep the sum at or below"):
        TroubleRates(dead_link=0.95)


def test_rows_depend_on_config_and_seed_alone() -> None:
    table = rows(CONFIG, 5)
    assert table.equals(rows(CONFIG, 5)) and not table.equals(rows(CONFIG, 6))
    assert table.column_names == ["url", "caption", "truth"] and table.num_rows == CONFIG.count
    assert rows(CONFIG, 5, 100, 120).equals(table.slice(100, 20))
    assert len(set(table["url"].to_pylist())) == CONFIG.count


def test_every_trouble_is_planted_at_its_rate_and_is_what_it_says() -> None:
    planted = [scene(CONFIG, 5, index) for index in range(CONFIG.count)]
    counts = Counter(row.trouble for row in planted)
    for kind, rate in CONFIG.trouble:
        assert 0.4 * rate < counts[kind] / CONFIG.count < 2 * rate, kind
    for row in planted:
        said = parse(row.caption)
        assert not is_held_out(row.claim)
        assert (row.of is not None) == (row.trouble in ("exact_duplicate", "near_duplicate", "wrong_caption"))
        assert row.of is None or planted[row.of].trouble is None
        if row.trouble == "wrong_caption":
            assert said and len(differing(row.claim, said)) >= 2
        elif row.trouble == "boilerplate":
            assert said is None
        else:
            assert said == row.claim
        if row.trouble in ("exact_duplicate", "near_duplicate"):
            assert row.of is not None and row.of < row.index and planted[row.of].claim == row.claim
    truth = json.loads(planted[0].truth)
    assert Claim.model_validate(truth["claim"]) == planted[0].claim and truth["trouble"] == planted[0].trouble
    assert all(parse(text) is None for text in BOILERPLATE)


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_the_bytes_of_each_trouble() -> None:
    of_kind = {row.trouble: row for row in (scene(CONFIG, 5, index) for index in range(300))}
    assert set(of_kind) == {None, *TROUBLES}
    data = {kind: file_bytes(CONFIG, 5, row) for kind, row in of_kind.items()}
    assert data == {kind: file_bytes(CONFIG, 5, row) for kind, row in of_kind.items()}
    assert data["dead_link"] is None
    for kind in ("truncated", "mislabelled"):
        with pytest.raises(OSError):
            decoded(data[kind] or b"")
    assert max(decoded(data["tiny"] or b"").shape[:2]) < 32
    height, width = decoded(data["extreme_aspect"] or b"").shape[:2]
    assert max(height, width) > 4 * min(height, width)
    for kind in ("exact_duplicate", "near_duplicate"):
        original = file_bytes(CONFIG, 5, scene(CONFIG, 5, of_kind[kind].of or 0)) or b""
        assert (data[kind] == original) == (kind == "exact_duplicate")
        resized = Image.fromarray(decoded(data[kind] or b"")).resize((64, 64))
        assert np.abs(np.asarray(resized, np.float32) - decoded(original)).mean() < 16
    for kind in (None, "wrong_caption", "boilerplate"):
        assert decoded(data[kind] or b"").shape == (64, 64, 3)


def test_an_untroubled_corpus() -> None:
    config = ScenesConfig(count=50, image_size=32, trouble=NO_TROUBLE)
    assert {scene(config, 0, index).trouble for index in range(50)} == {None}


def test_the_first_row_has_nothing_to_repeat() -> None:
    config = ScenesConfig(count=3, trouble=TroubleRates(**dict.fromkeys(TROUBLES, 0.0) | {"exact_duplicate": 0.9}))
    assert scene(config, 0, 0).trouble is None


def test_the_server_answers_on_one_connection() -> None:
    with serve(CONFIG, 5) as (host, port):
        connection = http.client.HTTPConnection(host, port, timeout=10)
        for index in range(60):
            row = scene(CONFIG, 5, index)
            connection.request("GET", "/" + row.url.rpartition("/")[2])
            response = connection.getresponse()
            body, expected = response.read(), file_bytes(CONFIG, 5, row)
            assert (response.status, body) == ((404, b"") if expected is None else (200, expected))
            if expected is not None:
                assert str(response.getheader("Content-Type")).startswith("image/")
        for path in ("/", "/999999.jpg", "/000000.gif", "/x.jpg", "/../etc/passwd"):
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            assert response.status == 404, path
        connection.close()
    with pytest.raises(OSError):
        http.client.HTTPConnection(host, port, timeout=1).request("GET", "/000000.jpg")
