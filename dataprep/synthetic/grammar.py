"""The grammar of the embedded corpus: what a caption claims about an image, rendered in English or Chinese and parsed.

A `Claim` is one group of identical objects, with a position ("a large striped red circle on the left") or without
("three small blue squares"), or two groups in a relation ("two small red circles left of a blue square").
`render_caption` words it, `parse_caption` inverts that exactly, `sample_claim` samples one. Held-out combinations never
occur in the corpus: they test whether a model composes or memorises.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from dataprep.io.config import Config

Colour = Literal["red", "green", "blue", "yellow", "purple"]
ShapeName = Literal["circle", "square", "triangle"]
SizeName = Literal["small", "large"]
Texture = Literal["solid", "striped", "hollow"]
Position = Literal["left", "right", "top", "bottom", "centre"]
Relation = Literal["left of", "right of", "above", "below"]
Language = Literal["en", "zh"]

# Purple is in no corpus but those that ask for it: a model that is fine-tuned can learn it.
NEW_COLOUR: Colour = "purple"
COLOURS = tuple(colour for colour in get_args(Colour) if colour != NEW_COLOUR)
SHAPES, SIZES = get_args(ShapeName), get_args(SizeName)
TEXTURES, POSITIONS, RELATIONS = get_args(Texture), get_args(Position), get_args(Relation)
LANGUAGES = get_args(Language)
COUNTS = (1, 2, 3)
ATTRIBUTES = ("count", "colour", "shape", "size", "position", "relation", "texture")

# Mean RGB of each colour and of the dark stripes, far apart in hue to stay distinct at 16x16 pixels and in JPEG.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 42),
    "green": (34, 158, 66),
    "blue": (40, 76, 214),
    "yellow": (244, 186, 20),
}
WIDE_PALETTE = PALETTE | {NEW_COLOUR: (170, 40, 190)}
DARK = (30, 30, 36)
# Radius of a circle of each size, as a share of the image side; other shapes are scaled to about the same area.
RADIUS: dict[str, float] = {"small": 0.155, "large": 0.235}

# Never in the corpus. Each colour loses one partner and keeps all others, so that no single value is unseen.
HELD_OUT_COLOUR_SHAPE = frozenset({("green", "triangle"), ("yellow", "square")})
HELD_OUT_COUNT_COLOUR = frozenset({(3, "blue")})
HELD_OUT_TEXTURE_COLOUR = frozenset({("hollow", "red")})

_COUNT_EN = {1: "a", 2: "two", 3: "three"}
_COUNT_ZH = {1: "一个", 2: "两个", 3: "三个"}
_COLOUR_ZH = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色", "purple": "紫色"}
_SHAPE_ZH = {"circle": "圆形", "square": "正方形", "triangle": "三角形"}
_SIZE_ZH = {"small": "小的", "large": "大的"}
_TEXTURE_ZH = {"striped": "条纹", "hollow": "空心"}
_POSITION_EN = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
_POSITION_ZH = {"left": "左侧", "right": "右侧", "top": "顶部", "bottom": "底部", "centre": "中央"}
_RELATION_ZH = {"left of": "左边", "right of": "右边", "above": "上方", "below": "下方"}


class ObjectGroup(Config):
    """One to three identical objects."""

    count: int = Field(1, ge=1, le=3, description="number of objects")
    colour: Colour = Field("red", description="colour of all objects")
    shape: ShapeName = Field("circle", description="shape of all objects")
    size: SizeName | None = Field(None, description="size of all objects; None: not stated, rendered as either")
    texture: Texture = Field("solid", description="texture of all objects; solid is not stated in captions")


class Claim(Config):
    """What a caption states: a group, with a position if it is one object, or in a relation to a second group."""

    first: ObjectGroup = Field(description="the group named first")
    second: ObjectGroup | None = Field(None, description="the group that `relation` refers to")
    relation: Relation | None = Field(None, description="where `first` is relative to `second`")
    position: Position | None = Field(None, description="where the single object is in the image")

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if (self.second is None) != (self.relation is None):
            raise ValueError(f"relation {self.relation!r} with second {self.second!r}; give both or neither")
        if self.position is not None and (self.second is not None or self.first.count != 1):
            raise ValueError(f"position {self.position!r} requires a single object; leave it out")
        return self

    @property
    def groups(self) -> tuple[ObjectGroup, ...]:
        """One or two groups."""
        return (self.first,) if self.second is None else (self.first, self.second)


def find_stated_attributes(claim: Claim) -> set[str]:
    """Returns the attributes that the caption of ``claim`` states, of `ATTRIBUTES`; solid texture is never stated."""
    found = {"count", "colour", "shape"}
    if any(group.size is not None for group in claim.groups):
        found.add("size")
    if any(group.texture != "solid" for group in claim.groups):
        found.add("texture")
    if claim.position is not None:
        found.add("position")
    if claim.relation is not None:
        found.add("relation")
    return found


def find_differences(one: Claim, other: Claim) -> set[str]:
    """Returns the attributes in which two claims contradict each other; stated by one only is no contradiction."""
    found = {name for name in ("position", "relation") if _is_contradiction(getattr(one, name), getattr(other, name))}
    if sum(group.count for group in one.groups) != sum(group.count for group in other.groups):
        found.add("count")
    for name in ("colour", "shape", "size", "texture"):
        ours, theirs = ({getattr(group, name) for group in claim.groups} for claim in (one, other))
        if ours != theirs and None not in ours | theirs:
            found.add(name)
    return found


def _is_contradiction(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def is_held_out(claim: Claim) -> bool:
    """Returns whether a group of ``claim`` is a held-out combination."""
    return any(
        (group.colour, group.shape) in HELD_OUT_COLOUR_SHAPE
        or (group.count, group.colour) in HELD_OUT_COUNT_COLOUR
        or (group.texture, group.colour) in HELD_OUT_TEXTURE_COLOUR
        for group in claim.groups
    )


def is_drawable(claim: Claim) -> bool:
    """Returns whether ``claim`` can be drawn without crowding, with every attribute readable at 16x16 pixels.

    Textures require large objects; three objects must be small; of two related groups at most one may be large, and
    each has at most two objects, small if two.
    """
    large = [group.size == "large" or group.texture != "solid" for group in claim.groups]
    if any(group.texture != "solid" and group.size == "small" for group in claim.groups):
        return False
    if claim.second is None:
        return claim.first.count < 3 or not large[0]
    crowded = any(group.count > 2 or (group.count == 2 and big) for group, big in zip(claim.groups, large, strict=True))
    return not crowded and sum(large) < 2


# ---------------------------------------------------------------------------------------------- words


def render_caption(claim: Claim, language: str = "en") -> str:
    """Renders ``claim`` in ``language`` ("en" or "zh"; ValueError for another). Inverse: `parse_caption`."""
    if language == "en":
        text = _render_group_en(claim.first)
        if claim.second is not None:
            return f"{text} {claim.relation} {_render_group_en(claim.second)}"
        return f"{text} {_POSITION_EN[claim.position]}" if claim.position else text
    if language == "zh":
        text = _render_group_zh(claim.first)
        if claim.second is not None and claim.relation is not None:
            return f"{text}在{_render_group_zh(claim.second)}的{_RELATION_ZH[claim.relation]}"
        return f"{text}在{_POSITION_ZH[claim.position]}" if claim.position else text
    raise ValueError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")


def _render_group_en(group: ObjectGroup) -> str:
    texture = None if group.texture == "solid" else group.texture
    noun = group.shape if group.count == 1 else group.shape + "s"
    return " ".join(word for word in (_COUNT_EN[group.count], group.size, texture, group.colour, noun) if word)


def _render_group_zh(group: ObjectGroup) -> str:
    size = _SIZE_ZH[group.size] if group.size else ""
    texture = _TEXTURE_ZH.get(group.texture, "")
    return _COUNT_ZH[group.count] + size + _COLOUR_ZH[group.colour] + texture + _SHAPE_ZH[group.shape]


def _match_any(words: dict[str, str] | tuple[str, ...]) -> str:
    return "|".join(words.values() if isinstance(words, dict) else words)


_EN = re.compile(
    rf"(?P<count>a|one|two|three)(?: (?P<size>{_match_any(SIZES)}))?(?: (?P<texture>striped|hollow))?"
    rf" (?P<colour>{_match_any(get_args(Colour))}) (?P<shape>{_match_any(SHAPES)})(?P<plural>s?)"
)
_ZH = re.compile(
    rf"(?P<count>一个|两个|三个)(?P<size>{_match_any(_SIZE_ZH)})?(?P<colour>{_match_any(_COLOUR_ZH)})"
    rf"(?P<texture>{_match_any(_TEXTURE_ZH)})?(?P<shape>{_match_any(_SHAPE_ZH)})"
)
_COUNTS = {word: count for table in (_COUNT_EN, _COUNT_ZH) for count, word in table.items()} | {"one": 1}


def _invert(table: dict[str, str]) -> dict[str, str]:
    return {word: value for value, word in table.items()}


def parse_caption(text: str) -> Claim | None:
    """Parses a caption; None if it is not in the grammar. Ignores case and a final full stop."""
    text = " ".join(text.strip().rstrip(".。").lower().replace("center", "centre").split())
    return _parse_zh(text) if _ZH.match(text) else _parse_en(text)


def _parse_en(text: str) -> Claim | None:
    match = _EN.match(text)
    first = _parse_group_en(match)
    if match is None or first is None:
        return None
    rest = text[match.end() :]
    if rest and not rest.startswith(" "):
        return None
    rest = rest.removeprefix(" ")
    relation = next((name for name in RELATIONS if rest.startswith(name + " ")), None)
    if relation is not None:
        second = _parse_group_en(_EN.fullmatch(rest, len(relation) + 1))
        return (
            None if second is None else Claim.model_validate({"first": first, "second": second, "relation": relation})
        )
    return _add_position(first, rest, _invert(_POSITION_EN))


def _parse_zh(text: str) -> Claim | None:
    match = _ZH.match(text)
    if match is None:
        return None
    first, rest = _parse_group_zh(match), text[match.end() :]
    if rest and not rest.startswith("在"):
        return None
    rest = rest.removeprefix("在")
    other = _ZH.match(rest)
    if other is None:
        return _add_position(first, rest, _invert(_POSITION_ZH))
    relation = _invert(_RELATION_ZH).get(rest[other.end() :].removeprefix("的"))
    if relation is None or rest[other.end()] != "的":
        return None
    return Claim.model_validate({"first": first, "second": _parse_group_zh(other), "relation": relation})


def _add_position(group: ObjectGroup, words: str, positions: dict[str, str]) -> Claim | None:
    """Returns the claim of one group followed by ``words``: nothing, or a position, which needs a single object."""
    if words and (words not in positions or group.count != 1):
        return None
    return Claim.model_validate({"first": group, "position": positions.get(words)})


def _parse_group_en(match: re.Match[str] | None) -> ObjectGroup | None:
    if match is None or (_COUNTS[match["count"]] > 1) != bool(match["plural"]):
        return None
    names = {name: match[name] for name in ("colour", "shape", "size")}
    return ObjectGroup.model_validate(
        names | {"count": _COUNTS[match["count"]], "texture": match["texture"] or "solid"}
    )


def _parse_group_zh(match: re.Match[str]) -> ObjectGroup:
    texture = _invert(_TEXTURE_ZH)[match["texture"]] if match["texture"] else "solid"
    size = _invert(_SIZE_ZH)[match["size"]] if match["size"] else None
    names = {"colour": _invert(_COLOUR_ZH)[match["colour"]], "shape": _invert(_SHAPE_ZH)[match["shape"]]}
    return ObjectGroup.model_validate(names | {"count": _COUNTS[match["count"]], "texture": texture, "size": size})


# ---------------------------------------------------------------------------------------------- chance


def sample_claim(rng: np.random.Generator, held_out: bool = False, related: float = 0.25) -> Claim:
    """Samples a drawable claim, with a held-out combination if ``held_out``, else without one.

    The share ``related`` has two groups in a relation; of the others 11/15 have one object with a position and 4/15 two
    or three identical objects.
    """
    kind = rng.random() / (1 - related) if related < 1 else 1.0
    invent = _sample_single if kind < 11 / 15 else _sample_several if kind < 1 else _sample_related
    while True:
        claim = invent(rng)
        if is_drawable(claim) and is_held_out(claim) == held_out:
            return claim


def recolour_claim(claim: Claim, rng: np.random.Generator) -> Claim:
    """Returns ``claim`` with one of its groups in `NEW_COLOUR`."""
    name = "second" if claim.second is not None and rng.random() < 0.5 else "first"
    changed = getattr(claim, name).model_copy(update={"colour": NEW_COLOUR})
    return claim.model_copy(update={name: changed})


def _choose(rng: np.random.Generator, values: tuple, weights: tuple[float, ...] | None = None) -> object:
    return values[int(rng.choice(len(values), p=weights))]


def _sample_group(
    rng: np.random.Generator, count: int, small: float, large: float, textured: float
) -> dict[str, object]:
    """Samples a group: stated small or large with those probabilities, else no stated size; large may be textured."""
    size = _choose(rng, ("small", "large", None), (small, large, 1 - small - large))
    texture = _choose(rng, ("striped", "hollow")) if size == "large" and rng.random() < textured else "solid"
    colour, shape = _choose(rng, COLOURS), _choose(rng, SHAPES)
    return {"count": count, "colour": colour, "shape": shape, "size": size, "texture": texture}


def _sample_single(rng: np.random.Generator) -> Claim:
    group = _sample_group(rng, 1, small=0.35, large=0.5, textured=0.55)
    return Claim.model_validate({"first": group, "position": _choose(rng, POSITIONS)})


def _sample_several(rng: np.random.Generator) -> Claim:
    count = 2 + int(rng.random() < 0.5)
    group = _sample_group(rng, count, small=0.5, large=0.3 if count == 2 else 0.0, textured=0.4)
    return Claim.model_validate({"first": group})


def _sample_related(rng: np.random.Generator) -> Claim:
    groups = [_sample_group(rng, 1 + int(rng.random() < 0.25), small=0.35, large=0.25, textured=0.3) for _ in range(2)]
    # Two colours, so that the group of each object is unambiguous.
    others = tuple(colour for colour in COLOURS if colour != groups[0]["colour"])
    groups[1]["colour"] = _choose(rng, others)
    return Claim.model_validate({"first": groups[0], "second": groups[1], "relation": _choose(rng, RELATIONS)})
