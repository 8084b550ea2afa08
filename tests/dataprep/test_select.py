from __future__ import annotations

import json
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from picture_fakes import picture
from pydantic import ValidationError

from dataprep.annotate import SCHEMA, perceptual_hash, thumbnail
from dataprep.filters.caption import BOILERPLATE_PATTERNS, Boilerplate
from dataprep.filters.duplicates import NearDuplicates, candidate_pairs
from dataprep.schema import UserError
from dataprep.select import ALL_FILTERS, TARGETS, SelectConfig, filter_quality, make_filters, select

OFF = SelectConfig(min_side=0, near_duplicate_bits=None, exact_duplicates=False)


def row(index, **changes):
    digest = f"{(index * 2654435761) % 2**32:08x}" + "0" * 56
    good = {
        "key": f"{index:09d}",
        "ok": True,
        "width": 100,
        "height": 80,
        "aspect": 1.25,
        "bytes": 1000,
        "sha256": digest,
    }
    good |= {"phash": index * 0x9E3779B97F4A7C15 % 2**64, "thumbnail": bytes([index % 256] * 192)}
    good |= {"caption": "a red circle", "caption_chars": 12, "caption_words": 3, "alpha_share": 1.0}
    return good | {"language": "en", "language_confidence": 0.9} | changes


def annotations(rows):
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def reasons(rows, config, scores=None, **options):
    tables = None
    if scores is not None:
        keys = [item["key"] for item in rows]
        tables = [pa.table({"key": keys, "clip_similarity": pa.array(scores, pa.float32())})]
    selection, _ = select([annotations(rows)], tables, config, **options)
    return [reason and reason.split(":")[0] for reason in selection[0]["reason"].to_pylist()]


@pytest.mark.parametrize(
    ("changes", "config", "reason"),
    [
        ({"ok": False, "width": None, "height": None, "aspect": None, "phash": None}, {}, "downloaded"),
        ({"width": 63}, {"min_side": 64}, "min_side"),
        ({"aspect": 3.01}, {}, "max_aspect"),
        ({"caption_chars": 4}, {}, "caption_chars"),
        ({"caption_chars": 1001}, {}, "caption_chars"),
        ({"caption_words": 1}, {}, "caption_words"),
        ({"alpha_share": 0.49}, {}, "alpha_share"),
        ({"caption": "IMG_1234.jpg"}, {}, "boilerplate"),
        ({"language": "de"}, {"languages": ("en", "zh")}, "language"),
    ],
)
def test_each_rule_drops_what_it_says(changes, config, reason):
    settings_ = OFF.model_copy(update=config)
    assert reasons([row(0), row(1, **changes), row(2)], settings_) == [None, reason, None]


@pytest.mark.parametrize(
    ("changes", "config"),
    [({"width": 64}, {"min_side": 64}), ({"aspect": 3.0}, {}), ({"alpha_share": 0.5}, {}), ({"caption_chars": 5}, {})],
)
def test_limits_are_inclusive(changes, config):
    assert reasons([row(0, **changes)], OFF.model_copy(update=config)) == [None]


def test_similarity_rules():
    rows = [row(index) for index in range(5)]
    scores = [0.1, 0.3, None, 0.2, 0.4]
    kept = [None, "min_similarity"]
    picked = reasons(rows, OFF, scores, min_similarity=float(np.float32(0.2)))
    assert picked == [kept[1], None, kept[1], None, None]
    top = OFF.model_copy(update={"top_similarity": 0.5})
    assert [reason is None for reason in reasons(rows, top, scores)] == [False, True, False, True, True]
    with pytest.raises(UserError, match="nothing is left of 5 rows; min_similarity dropped 5"):
        reasons(rows, OFF, None, min_similarity=0.1)


def test_funnel_adds_up_and_names_the_reason():
    rows = [row(0), row(1, aspect=9.0), row(2, caption="click here to buy"), row(3)]
    _, funnel = select([annotations(rows[:2]), annotations(rows[2:])], None, OFF)
    assert [step["in"] for step in funnel][1:] == [step["kept"] for step in funnel][:-1]
    assert funnel[0]["in"] == 4 and funnel[-1]["kept"] == 2
    assert [step["filter"] for step in funnel if step["dropped"]] == ["max_aspect", "boilerplate"]
    assert all(set(step) == {"filter", "in", "dropped", "kept", "reason"} for step in funnel)


def test_selection_is_row_aligned_over_shards_and_duplicates_are_global():
    first, second = [row(0), row(1)], [row(2, sha256=row(0)["sha256"]), row(3)]
    selection, _ = select([annotations(first), annotations(second)], None, SelectConfig())
    assert [table["key"].to_pylist() for table in selection] == [
        [item["key"] for item in first],
        [item["key"] for item in second],
    ]
    assert selection[0]["keep"].to_pylist() == [True, True]
    assert selection[1]["keep"].to_pylist() == [False, True]


def test_a_dropped_first_occurrence_leaves_its_duplicate():
    same = row(0)["sha256"]
    rows = [row(0, aspect=9.0), row(1, sha256=same), row(2, sha256=same)]
    assert reasons(rows, SelectConfig()) == ["max_aspect", None, "exact_duplicate"]


def pictured(index, image, **changes):
    return row(index, phash=perceptual_hash(image), thumbnail=thumbnail(image), **changes)


def test_near_duplicates_survive_resize_and_light_but_not_colour():
    image = picture(5, 120, 120)
    brighter = np.clip(image * 1.05, 0, 255).astype(np.uint8)
    other_colours = np.ascontiguousarray(image[..., ::-1])
    rows = [pictured(0, image), pictured(1, picture(5, 90, 90)), pictured(2, brighter), pictured(3, other_colours)]
    config = SelectConfig(near_duplicate_bits=16, near_duplicate_colour=8.0)
    assert reasons(rows, config)[:2] == [None, "near_duplicate"]
    assert reasons(rows, config)[3] is None


def test_a_chain_of_near_duplicates_keeps_what_is_far_from_every_kept_one():
    thumb = bytes([100] * 192)
    rows = [row(index, phash=(1 << index * 4) - 1, thumbnail=thumb) for index in range(3)]  # 0, 4 and 8 bits from 0
    assert reasons(rows, SelectConfig(near_duplicate_bits=4)) == [None, "near_duplicate", None]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 8))
def test_candidate_pairs_miss_no_close_pair(seed, distance):
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, 30, dtype=np.uint64)
    flips = np.array([sum(1 << int(bit) for bit in rng.choice(64, distance, False)) for _ in range(30)], np.uint64)
    hashes = np.concatenate([hashes, hashes ^ flips, hashes[:3]])
    found = {
        frozenset(pair) for left, right in candidate_pairs(hashes, distance) for pair in zip(left, right, strict=True)
    }
    for i in range(len(hashes)):
        for j in range(i):
            if int(hashes[i] ^ hashes[j]).bit_count() <= distance:
                assert {i, j} in found


def test_near_duplicates_stay_fast_where_all_hashes_are_alike():
    count = 3000
    table = annotations([row(index, phash=7, thumbnail=bytes([index % 256] * 192)) for index in range(count)])
    start = time.monotonic()
    NearDuplicates(4, 0.0).verdict(table)
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    "caption",
    [
        *("IMG_1234.jpg", "DSC00042", "photo 12", "image", "Untitled", "click here to buy", "图片", "点击查看大图"),
        *("https://a.test/x", "Free shipping on all orders over $50", "my holiday (3).PNG", "暂无图片"),
    ],
)
def test_boilerplate(caption):
    keep, _ = Boilerplate(BOILERPLATE_PATTERNS).verdict(pa.table({"caption": [caption, f" {caption} "]}))
    assert not keep.any()


@pytest.mark.parametrize(
    "caption", ["a red circle", "image of a cat", "photo of 2 dogs", "一张红色圆形的图片", "Logo design on a mug"]
)
def test_not_boilerplate(caption):
    keep, _ = Boilerplate(BOILERPLATE_PATTERNS).verdict(pa.table({"caption": [caption]}))
    assert keep.all()


def test_split_goes_by_content():
    rows = [row(index) for index in range(2000)]
    config = OFF.model_copy(update={"validation_fraction": 0.1})
    splits = select([annotations(rows)], None, config)[0][0]["split"].to_pylist()
    assert 0.07 < splits.count("validation") / 2000 < 0.13
    again = select([annotations(rows[::-1])], None, config)[0][0]["split"].to_pylist()
    assert again == splits[::-1]
    dropped = select([annotations([row(0), row(1, aspect=9.0)])], None, config)[0][0]
    assert dropped["split"].to_pylist()[1] is None


def test_scores_of_other_rows_are_refused():
    scores = pa.table({"key": ["x"], "clip_similarity": pa.array([0.1], pa.float32())})
    with pytest.raises(ValueError, match="score the shards again"):
        select([annotations([row(0)])], [scores], OFF)


def test_filter_quality_against_the_truth():
    same = row(0)["sha256"]
    rows = [row(0), row(1, sha256=same), row(2, aspect=6.0), row(3, width=10), row(4, aspect=9.0), row(5)]
    truths = [None, ("exact_duplicate", 0), ("extreme_aspect", None), ("tiny", None), None, ("wrong_caption", 0)]
    texts = [json.dumps({"claim": {}, "trouble": item and item[0], "of": item and item[1]}) for item in truths]
    download = pa.table({"key": [item["key"] for item in rows], "truth": texts})
    selection, _ = select([annotations(rows)], None, SelectConfig())
    quality = filter_quality([download], selection)
    assert quality["troubles"]["tiny"] == {"planted": 1, "dropped": 1, "reasons": {"min_side": 1}}
    assert quality["troubles"]["wrong_caption"]["dropped"] == 0
    assert quality["clean"] == {"rows": 2, "dropped": 1, "reasons": {"max_aspect": 1}}
    assert quality["filters"]["max_aspect"] == {"dropped": 2, "right": 1, "precision": 0.5, "recall": 1.0}
    assert quality["filters"]["exact_duplicate"]["recall"] == 1.0
    assert filter_quality([download.drop(["truth"])], selection) is None


def test_every_filter_has_its_place():
    config = SelectConfig(languages=("en",), top_similarity=0.5)
    assert tuple(rule.name for rule in make_filters(config, 0.1)) == ALL_FILTERS
    assert set().union(*TARGETS.values()) <= set(ALL_FILTERS)


def test_config_errors():
    with pytest.raises(ValidationError, match="min_caption_chars 50 is above max_caption_chars 20"):
        SelectConfig(min_caption_chars=50, max_caption_chars=20)
    with pytest.raises(ValidationError, match="not a regular expression"):
        SelectConfig(boilerplate_patterns=("(",))
