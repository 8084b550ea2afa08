from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError
from select_fakes import choose, float32, reasons, row, write_shards

from dataprep.annotate import SCHEMA
from dataprep.filters.caption import BOILERPLATE_PATTERNS, Boilerplate
from dataprep.quality import TARGETS, filter_quality
from dataprep.rules import ALL_FILTERS, SelectConfig, make_filters, make_set_filters
from dataprep.schema import UserError
from dataprep.select import EXAMPLES, select

OFF = SelectConfig(min_side=0, near_duplicate_bits=None, exact_duplicates=False)
LISTED = {
    "listed_nsfw": pa.array(["UNLIKELY", "nsfw ", None]),
    "listed_unsafe": [0.1, 0.5, None],
    "listed_watermark": [0.1, 0.8, None],
    "listed_aesthetic": [7.1, 7.0, None],
    "listed_language": ["en", "fr", None],
    "listed_similarity_b32": [0.28, 0.27, None],
    "listed_similarity_l14": float32([0.28, 0.27, None]),
}


@pytest.mark.parametrize(
    ("changes", "config", "reason"),
    [
        ({"ok": False, "width": None, "height": None, "aspect": None, "phash": None}, {}, "downloaded"),
        ({"width": 63}, {"min_side": 64}, "min_side"),
        ({"aspect": 3.01}, {}, "max_aspect"),
        ({"width": 50}, {"min_area": 4001}, "area"),
        ({"width": 101}, {"max_area": 8000}, "area"),
        ({"bytes": 999}, {"min_bytes": 1000}, "file_size"),
        ({"bytes": 1001}, {"max_bytes": 1000}, "file_size"),
        ({"caption_chars": 4}, {}, "caption_chars"),
        ({"caption_chars": 1001}, {}, "caption_chars"),
        ({"caption_words": 1}, {}, "caption_words"),
        ({"caption_words": 257}, {}, "caption_words"),
        ({"caption": "两只 猫"}, {"words": "spaces", "min_caption_words": 3}, "caption_words"),
        ({"alpha_share": 0.49}, {}, "alpha_share"),
        ({"caption": "IMG_1234.jpg"}, {}, "boilerplate"),
        ({"language": "de"}, {"languages": ("en", "zh")}, "language"),
    ],
)
def test_each_rule_drops_what_it_says(changes, config, reason):
    settings_ = OFF.model_copy(update=config)
    assert reasons([row(0), row(1, **changes), row(2)], settings_) == [None, reason, None]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"drop_nsfw_labels": ("NSFW",)}, "nsfw_label"),
        ({"unsafe_below": 0.5}, "unsafe"),
        ({"watermark_below": 0.8}, "watermark"),
        ({"aesthetic_above": 7.0}, "aesthetic"),
        ({"min_aesthetic": 7.05}, "aesthetic"),
        ({"languages": ("en",), "language_from": "listed"}, "language"),
        ({"min_similarity": 0.28, "similarity": "listed_similarity_b32"}, "min_similarity"),
        ({"min_similarity": 0.28, "similarity": "listed_similarity_l14"}, "min_similarity"),
    ],
)
def test_rules_on_what_came_with_the_list(config, reason):
    rows = [row(0), row(1), row(2)]
    null = None if reason == "nsfw_label" else reason  # a row without a number cannot pass; one without a label can
    assert reasons(rows, OFF.model_copy(update=config), None, LISTED) == [None, reason, null]


def test_a_head_counts_before_the_list():
    heads = {"clip_similarity": float32([1, 1]), "nsfw": float32([0.9, 0.1]), "aesthetic": float32([1, 9])}
    listed = {"listed_unsafe": [0.0, 0.9], "listed_aesthetic": [9.0, 1.0]}
    for config in ({"unsafe_below": 0.5}, {"min_aesthetic": 5.0}):
        kept = reasons([row(0), row(1)], OFF.model_copy(update=config), heads, listed)
        assert [reason is None for reason in kept] == [False, True]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"drop_nsfw_labels": ("NSFW",)}, ["select.drop_nsfw_labels", "listing.layout"]),
        ({"unsafe_below": 0.5}, ["select.unsafe_below", "score.heads.nsfw"]),
        ({"aesthetic_above": 0.5}, ["listed_aesthetic", "score.heads.aesthetic"]),
        ({"min_similarity": 0.3, "similarity": "listed_similarity_l14"}, ["set select.similarity=score"]),
        ({"top_similarity": 0.3}, ["clip_similarity", "score stage"]),
        ({"languages": ("en",), "language_from": "listed"}, ["set select.language_from=caption"]),
        ({"near_duplicate_cosine": 0.9}, ["set score.embeddings=true"]),
        ({"duplicate_pairs": True}, ["select (duplicate_pair)", "url"]),
    ],
)
def test_a_missing_column_is_named_with_its_remedy(config, words):
    with pytest.raises(UserError) as caught:
        reasons([row(0)], OFF.model_copy(update=config))
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_column_that_a_later_shard_lacks_is_null_there():
    config = OFF.model_copy(update={"unsafe_below": 0.5})
    written, _ = choose([[row(0)], [row(1)]], config, None, [{"listed_unsafe": [0.1]}, {}])
    assert [table["keep"].to_pylist() for table in written] == [[True], [False]]


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({"width": 64}, {"min_side": 64}),
        ({"aspect": 3.0}, {}),
        ({"alpha_share": 0.5}, {}),
        ({"alpha_share": 0.7}, {"min_alpha_share": 0.7}),  # not a float32
        ({"caption_chars": 5}, {}),
        ({"width": 50}, {"min_area": 4000, "max_area": 4000}),
        ({"bytes": 10}, {"min_bytes": 10, "max_bytes": 10}),
    ],
)
def test_limits_are_inclusive(changes, config):
    assert reasons([row(0, **changes)], OFF.model_copy(update=config)) == [None]


def test_the_size_of_the_file_as_fetched_counts_where_it_is_known():
    config = OFF.model_copy(update={"min_bytes": 5000})
    rows = [row(0, bytes=9000), row(1, bytes=10)]
    written, selection = choose([rows], config, None, [{"original_bytes": [4999, 5000]}])
    assert written[0]["keep"].to_pylist() == [False, True]
    said = {step["filter"]: step["reason"] for step in selection.funnel}
    assert said["file_size"] == "file below 5000 bytes"
    _, stored = choose([rows], config)
    assert {"filter": "file_size", "reason": "stored file below 5000 bytes"}.items() <= stored.funnel[2].items()


def test_similarity_rules():
    rows = [row(index) for index in range(5)]
    scores = {"clip_similarity": float32([0.1, 0.3, None, 0.2, 0.4])}
    picked = reasons(rows, OFF, scores, min_similarity=0.2)
    assert [reason is None for reason in picked] == [False, True, False, True, True]
    top = OFF.model_copy(update={"top_similarity": 0.5})
    assert [reason is None for reason in reasons(rows, top, scores)] == [False, True, False, True, True]
    nothing = {"clip_similarity": float32([None] * 5)}
    for config, options, rule in ((OFF, {"min_similarity": 0.1}, "min_similarity"), (top, {}, "top_similarity")):
        with pytest.raises(UserError, match=f"nothing is left of 5 rows; {rule} dropped 5"):
            reasons(rows, config, nothing, **options)


def test_the_clip_section_counts_before_the_rule():
    scores = {"clip_similarity": float32([0.25])}
    config = OFF.model_copy(update={"min_similarity": 0.3})
    assert reasons([row(0)], config, scores, min_similarity=0.2) == [None]


def test_funnel_adds_up_and_names_the_reason():
    rows = [row(0), row(1, aspect=9.0), row(2, caption="click here to buy"), row(3, sha256=row(0)["sha256"])]
    config = OFF.model_copy(update={"exact_duplicates": True})
    _, selection = choose([rows[:2], rows[2:]], config)
    funnel = selection.funnel
    assert [step["in"] for step in funnel][1:] == [step["kept"] for step in funnel][:-1]
    assert funnel[0]["in"] == selection.rows == 4 and funnel[-1]["kept"] == selection.kept == 1
    assert [step["filter"] for step in funnel if step["dropped"]] == ["max_aspect", "boilerplate", "exact_duplicate"]
    assert all(set(step) == {"filter", "in", "dropped", "kept", "reason"} for step in funnel)
    assert all(step["reason"] for step in funnel if step["dropped"])


def test_examples_are_the_first_few_rows_of_each_filter():
    rows = [row(index, aspect=9.0 if index % 2 else 1.0) for index in range(40)]
    _, selection = choose([rows[:6], rows[6:]], OFF)
    found = selection.examples["max_aspect"]
    keys = [f"{index:09d}" for index in range(1, 2 * EXAMPLES, 2)]
    assert found == [{"shard": int(int(key) >= 6), "key": key} for key in keys]
    assert list(selection.examples) == [step["filter"] for step in selection.funnel]
    assert selection.examples["downloaded"] == []


def test_selection_is_row_aligned_over_shards_and_duplicates_are_global():
    first, second = [row(0), row(1)], [row(2, sha256=row(0)["sha256"]), row(3)]
    written, _ = choose([first, second], SelectConfig())
    assert [table["key"].to_pylist() for table in written] == [
        [item["key"] for item in first],
        [item["key"] for item in second],
    ]
    assert [table["keep"].to_pylist() for table in written] == [[True, True], [False, True]]


def test_a_shard_of_which_nothing_is_left_is_written_too():
    written, selection = choose([[row(0, ok=False)], [row(1)], []], SelectConfig())
    assert [table["keep"].to_pylist() for table in written] == [[False], [True], []]
    assert selection.rows == 2


def test_a_dropped_first_occurrence_leaves_its_duplicate():
    same = row(0)["sha256"]
    rows = [row(0, aspect=9.0), row(1, sha256=same), row(2, sha256=same)]
    assert reasons(rows, SelectConfig()) == ["max_aspect", None, "exact_duplicate"]


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
    splits = choose([rows], config)[0][0]["split"].to_pylist()
    assert 0.07 < splits.count("validation") / 2000 < 0.13
    again = choose([rows[::-1]], config)[0][0]["split"].to_pylist()
    assert again == splits[::-1]
    dropped = choose([[row(0), row(1, aspect=9.0)]], config)[0][0]
    assert dropped["split"].to_pylist()[1] is None


def test_files_of_other_rows_are_refused(tmp_path):
    config = OFF.model_copy(update={"min_similarity": 0.1})
    tables = [pa.Table.from_pylist([row(0)], schema=SCHEMA)]
    scores = [pa.table({"key": ["x"], "clip_similarity": float32([0.1])})]
    with pytest.raises(ValueError, match="make the scores of this shard again"):
        select(write_shards(tmp_path, tables, scores), config, lambda place, table: None)


def test_filter_quality_against_the_truth():
    same = row(0)["sha256"]
    rows = [row(0), row(1, sha256=same), row(2, aspect=6.0), row(3, width=10), row(4, aspect=9.0), row(5)]
    truths = [None, ("exact_duplicate", 0), ("extreme_aspect", None), ("tiny", None), None, ("wrong_caption", 0)]
    texts = [json.dumps({"claim": {}, "trouble": item and item[0], "of": item and item[1]}) for item in truths]
    download = pa.table({"key": [item["key"] for item in rows], "truth": texts})
    written, _ = choose([rows], SelectConfig())
    quality = filter_quality([download], written)
    assert quality["troubles"]["tiny"] == {"planted": 1, "dropped": 1, "reasons": {"min_side": 1}}
    assert quality["troubles"]["wrong_caption"]["dropped"] == 0
    assert quality["clean"] == {"rows": 2, "dropped": 1, "reasons": {"max_aspect": 1}}
    assert quality["filters"]["max_aspect"] == {"dropped": 2, "right": 1, "precision": 0.5, "recall": 1.0}
    assert quality["filters"]["exact_duplicate"]["recall"] == 1.0
    assert filter_quality([download.drop(["truth"])], written) is None


def test_every_filter_has_its_place():
    everything = SelectConfig(
        min_area=1,
        min_bytes=1,
        languages=("en",),
        drop_nsfw_labels=("NSFW",),
        unsafe_below=0.5,
        watermark_below=0.5,
        min_aesthetic=1.0,
        top_similarity=0.5,
        duplicate_pairs=True,
        max_caption_repeats=3,
        near_duplicate_cosine=0.9,
    )
    available = {*SCHEMA.names, *LISTED, "url", "clip_similarity", "clip_embedding"}
    rules = [*make_filters(everything, available, 0.1), *make_set_filters(everything, available)]
    assert tuple(rule.name for rule in rules) == ALL_FILTERS
    assert set().union(*TARGETS.values()) <= set(ALL_FILTERS)


def test_config_errors():
    with pytest.raises(ValidationError, match="min_caption_chars 50 is above max_caption_chars 20"):
        SelectConfig(min_caption_chars=50, max_caption_chars=20)
    with pytest.raises(ValidationError, match="min_area 50 is above max_area 20"):
        SelectConfig(min_area=50, max_area=20)
    with pytest.raises(ValidationError, match="not a regular expression"):
        SelectConfig(boilerplate_patterns=("(",))
    with pytest.raises(ValidationError, match="set one of them to null"):
        SelectConfig(min_aesthetic=5.0, aesthetic_above=7.0)


def test_a_float32_equal_to_its_limit_is_on_the_limit():
    # 0.7 as float32 is below 0.7: neither may `below` let it pass nor `at least` drop it.
    heads = {"clip_similarity": float32([0.7]), "nsfw": float32([0.7])}
    assert reasons([row(0)], OFF, heads, min_similarity=0.7) == [None]
    with pytest.raises(UserError, match="unsafe dropped 1"):
        reasons([row(0)], OFF.model_copy(update={"unsafe_below": 0.7}), heads)
    assert float(np.float32(0.7)) < 0.7
