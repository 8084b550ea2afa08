"""Claims are rendered, parsed back and sampled; held-out combinations stay out."""

import numpy as np
import pytest
from pydantic import ValidationError

from dataprep.synthetic import grammar
from dataprep.synthetic.grammar import (
    Claim,
    ObjectGroup,
    find_differences,
    find_stated_attributes,
    is_drawable,
    is_held_out,
    parse_caption,
    render_caption,
    sample_claim,
)


def claims(count: int, held_out: bool = False) -> list[Claim]:
    rng = np.random.default_rng(7)
    return [sample_claim(rng, held_out) for _ in range(count)]


@pytest.mark.parametrize("language", grammar.LANGUAGES)
@pytest.mark.parametrize("held_out", [False, True])
def test_parsing_inverts_rendering(language: str, held_out: bool) -> None:
    for claim in claims(400, held_out):
        assert parse_caption(render_caption(claim, language)) == claim


def test_distinct_claims_have_distinct_captions() -> None:
    distinct = set(claims(1000))
    for language in grammar.LANGUAGES:
        assert len({render_caption(claim, language) for claim in distinct}) == len(distinct)


def test_the_sentence_of_the_readme() -> None:
    claim = parse_caption("two small red circles left of a blue square")
    assert claim == Claim(
        first=ObjectGroup(count=2, size="small", colour="red", shape="circle"),
        second=ObjectGroup(count=1, colour="blue", shape="square"),
        relation="left of",
    )
    assert is_drawable(claim) and not is_held_out(claim)
    assert find_stated_attributes(claim) == {"count", "colour", "shape", "size", "relation"}
    assert parse_caption("Two small red circles left of one blue square.") == claim
    assert parse_caption("a red circle in the center") == parse_caption("一个红色圆形在中央。")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a cat",
        "a red circles",
        "two red circle",
        "a red circle on the moon",
        "a red circleon the left",
        "two red circles on the left",
        "a red circle left of",
        "a red circle left of a cat",
        "a red circle left of a blue square on the left",
        "small red circle",
        "一个圆形",
        "一个红色圆形左侧",
        "两个红色圆形在左侧",
        "一个红色圆形在一个蓝色圆形",
        "一个红色圆形在一个蓝色圆形左边",
        "一个红色圆形在一个蓝色圆形的里面",
        "IMG_1234.jpg",
    ],
)
def test_parse_gives_none_outside_the_grammar(text: str) -> None:
    assert parse_caption(text) is None


def test_unknown_language() -> None:
    with pytest.raises(ValueError, match="language 'fr' is not one of en, zh"):
        render_caption(claims(1)[0], "fr")


def test_impossible_claims_are_refused() -> None:
    one, two = ObjectGroup(), ObjectGroup(count=2)
    with pytest.raises(ValidationError, match="give both or neither"):
        Claim(first=one, relation="above")
    with pytest.raises(ValidationError, match="requires a single object"):
        Claim(first=two, position="left")
    with pytest.raises(ValidationError):
        ObjectGroup(count=4)


def test_held_out_is_kept_apart_and_every_value_is_seen() -> None:
    seen, held_out = claims(2000), claims(500, held_out=True)
    assert not any(map(is_held_out, seen)) and all(map(is_held_out, held_out))
    assert all(map(is_drawable, seen)) and all(map(is_drawable, held_out))
    groups = [group for claim in seen for group in claim.groups]
    for name, values in (("count", grammar.COUNTS), ("colour", grammar.COLOURS), ("shape", grammar.SHAPES)):
        assert {getattr(group, name) for group in groups} == set(values)
    assert {group.size for group in groups} == {*grammar.SIZES, None}
    assert {group.texture for group in groups} == set(grammar.TEXTURES)
    assert {claim.position for claim in seen} == {*grammar.POSITIONS, None}
    assert {claim.relation for claim in seen} == {*grammar.RELATIONS, None}
    # Only what is held out is missing: every other pair of colour and shape, and of count and colour, is there.
    pairs = {(group.colour, group.shape) for group in groups}
    assert len(pairs) == len(grammar.COLOURS) * len(grammar.SHAPES) - len(grammar.HELD_OUT_COLOUR_SHAPE)
    counted = {(group.count, group.colour) for group in groups}
    assert len(counted) == len(grammar.COUNTS) * len(grammar.COLOURS) - len(grammar.HELD_OUT_COUNT_COLOUR)


def test_the_mix_of_claims() -> None:
    seen = claims(2000)
    assert 0.5 < np.mean([claim.position is not None for claim in seen]) < 0.6
    assert 0.2 < np.mean([claim.relation is not None for claim in seen]) < 0.3


def test_differences_are_contradictions_only() -> None:
    claim = parse_caption("a small red circle on the left")
    other = parse_caption("a red square on the right")
    assert claim and other
    assert find_differences(claim, claim) == set()
    assert find_differences(claim, other) == {"shape", "position"} == find_differences(other, claim)


@pytest.mark.parametrize(
    "text",
    [
        "a small striped red circle",
        "three large red circles",
        "two large red circles above a blue square",
        "a large red circle above a large blue square",
        "three red circles above a blue square",
    ],
)
def test_crowded_claims_do_not_fit(text: str) -> None:
    claim = parse_caption(text)
    assert claim and not is_drawable(claim)


def test_a_new_colour_is_worded_and_parsed_and_never_sampled() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        claim = grammar.sample_claim(rng)
        assert all(group.colour != grammar.NEW_COLOUR for group in claim.groups)
        changed = grammar.recolour_claim(claim, rng)
        assert [group.colour for group in changed.groups].count(grammar.NEW_COLOUR) == 1
        assert grammar.is_drawable(changed)
        for language in grammar.LANGUAGES:
            assert grammar.parse_caption(grammar.render_caption(changed, language)) == changed
