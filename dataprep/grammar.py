"""The language of the embedded corpus: what a caption claims about a picture, said in English or Chinese and read back.

A `Claim` is one group of like objects, at a place ("a large striped red circle on the left") or not ("three small blue
squares"), or two groups in a relation ("two small red circles left of a blue square"). `render` says it, `parse` reads
it back exactly, `draw_claim` invents one. Some combinations are held out: they never appear in the corpus, so that
they test whether a model composes or remembers.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import numpy as np
from pydantic import Field, model_validator

from dataprep.schema import Config

Colour = Literal["red", "green", "blue", "yellow"]
Shape = Literal["circle", "square", "triangle"]
Size = Literal["small", "large"]
Texture = Literal["solid", "striped", "hollow"]
Position = Literal["left", "right", "top", "bottom", "centre"]
Relation = Literal["left of", "right of", "above", "below"]
Language = Literal["en", "zh"]

COLOURS, SHAPES, SIZES = get_args(Colour), get_args(Shape), get_args(Size)
TEXTURES, POSITIONS, RELATIONS = get_args(Texture), get_args(Position), get_args(Relation)
LANGUAGES = get_args(Language)
COUNTS = (1, 2, 3)
ATTRIBUTES = ("count", "colour", "shape", "size", "position", "relation", "texture")

# Mean RGB of each colour and of the dark stripes. Far apart in hue, so that 16x16 pixels and JPEG keep them apart.
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (218, 38, 42),
    "green": (34, 158, 66),
    "blue": (40, 76, 214),
    "yellow": (244, 186, 20),
}
DARK = (30, 30, 36)
# Radius of a circle of each size, as a share of the picture's side; other shapes are scaled to about the same area.
RADIUS: dict[str, float] = {"small": 0.155, "large": 0.235}

# Never drawn or captioned in the corpus. Each colour loses one partner and keeps all its others; so no value is unseen.
HELD_OUT_COLOUR_SHAPE = frozenset({("green", "triangle"), ("yellow", "square")})
HELD_OUT_COUNT_COLOUR = frozenset({(3, "blue")})
HELD_OUT_TEXTURE_COLOUR = frozenset({("hollow", "red")})

_COUNT_EN = {1: "a", 2: "two", 3: "three"}
_COUNT_ZH = {1: "一个", 2: "两个", 3: "三个"}
_COLOUR_ZH = {"red": "红色", "green": "绿色", "blue": "蓝色", "yellow": "黄色"}
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
    """One to three objects that are alike."""

    count: int = Field(1, ge=1, le=3, description="how many")
    colour: Colour = Field("red", description="the colour of all of them")
    shape: Shape = Field("circle", description="the shape of all of them")
    size: Size | None = Field(None, description="their size; None: not said, drawn as either")
    texture: Texture = Field("solid", description="their texture; solid is not said in words")


class Claim(Config):
    """What a caption says: a group, with a position if it is one object, or in a relation to a second group."""

    first: ObjectGroup = Field(description="the group named first")
    second: ObjectGroup | None = Field(None, description="the group that `relation` refers to")
    relation: Relation | None = Field(None, description="where `first` lies, seen from `second`")
    position: Position | None = Field(None, description="where the one object lies in the picture")

    @model_validator(mode="after")
    def _check(self) -> Claim:
        if (self.second is None) != (self.relation is None):
            raise ValueError(f"relation {self.relation!r} with second {self.second!r}; give both or neither")
        if self.position is not None and (self.second is not None or self.first.count != 1):
            raise ValueError(f"position {self.position!r} goes with one single object; leave it out")
        return self

    @property
    def groups(self) -> tuple[ObjectGroup, ...]:
        """The one or two groups."""
        return (self.first,) if self.second is None else (self.first, self.second)


def stated(claim: Claim) -> set[str]:
    """The attributes that the caption of ``claim`` states; a subset of `ATTRIBUTES`. Solid texture is never said."""
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


def differing(one: Claim, other: Claim) -> set[str]:
    """The attributes in which two claims contradict each other; what only one of them says is no contradiction."""
    found = {name for name in ("position", "relation") if _contradict(getattr(one, name), getattr(other, name))}
    if sum(group.count for group in one.groups) != sum(group.count for group in other.groups):
        found.add("count")
    for name in ("colour", "shape", "size", "texture"):
        ours, theirs = ({getattr(group, name) for group in claim.groups} for claim in (one, other))
        if ours != theirs and None not in ours | theirs:
            found.add(name)
    return found


def _contradict(one: str | None, other: str | None) -> bool:
    return one is not None and other is not None and one != other


def is_held_out(claim: Claim) -> bool:
    """Whether a group of ``claim`` is one of the combinations kept out of the corpus."""
    return any(
        (group.colour, group.shape) in HELD_OUT_COLOUR_SHAPE
        or (group.count, group.colour) in HELD_OUT_COUNT_COLOUR
        or (group.texture, group.colour) in HELD_OUT_TEXTURE_COLOUR
        for group in claim.groups
    )


def fits(claim: Claim) -> bool:
    """Whether ``claim`` can be drawn without crowding, every attribute readable at 16x16 pixels.

    Textures need large objects; three objects must be small; of two related groups at most one may be large, and
    each holds at most two objects, small if two.
    """
    large = [group.size == "large" or group.texture != "solid" for group in claim.groups]
    if any(group.texture != "solid" and group.size == "small" for group in claim.groups):
        return False
    if claim.second is None:
        return claim.first.count < 3 or not large[0]
    crowded = any(group.count > 2 or (group.count == 2 and big) for group, big in zip(claim.groups, large, strict=True))
    return not crowded and sum(large) < 2


# ---------------------------------------------------------------------------------------------- words


def render(claim: Claim, language: str = "en") -> str:
    """The caption of ``claim`` in ``language`` ("en" or "zh"); ValueError for another one. `parse` is the inverse."""
    if language == "en":
        text = _group_en(claim.first)
        if claim.second is not None:
            return f"{text} {claim.relation} {_group_en(claim.second)}"
        return f"{text} {_POSITION_EN[claim.position]}" if claim.position else text
    if language == "zh":
        text = _group_zh(claim.first)
        if claim.second is not None and claim.relation is not None:
            return f"{text}在{_group_zh(claim.second)}的{_RELATION_ZH[claim.relation]}"
        return f"{text}在{_POSITION_ZH[claim.position]}" if claim.position else text
    raise ValueError(f"language {language!r} is not one of {', '.join(LANGUAGES)}")


def _group_en(group: ObjectGroup) -> str:
    texture = None if group.texture == "solid" else group.texture
    noun = group.shape if group.count == 1 else group.shape + "s"
    return " ".join(word for word in (_COUNT_EN[group.count], group.size, texture, group.colour, noun) if word)


def _group_zh(group: ObjectGroup) -> str:
    size = _SIZE_ZH[group.size] if group.size else ""
    texture = _TEXTURE_ZH.get(group.texture, "")
    return _COUNT_ZH[group.count] + size + _COLOUR_ZH[group.colour] + texture + _SHAPE_ZH[group.shape]


def _any(words: dict[str, str] | tuple[str, ...]) -> str:
    return "|".join(words.values() if isinstance(words, dict) else words)


_EN = re.compile(
    rf"(?P<count>a|one|two|three)(?: (?P<size>{_any(SIZES)}))?(?: (?P<texture>striped|hollow))?"
    rf" (?P<colour>{_any(COLOURS)}) (?P<shape>{_any(SHAPES)})(?P<plural>s?)"
)
_ZH = re.compile(
    rf"(?P<count>一个|两个|三个)(?P<size>{_any(_SIZE_ZH)})?(?P<colour>{_any(_COLOUR_ZH)})"
    rf"(?P<texture>{_any(_TEXTURE_ZH)})?(?P<shape>{_any(_SHAPE_ZH)})"
)
_COUNTS = {word: count for table in (_COUNT_EN, _COUNT_ZH) for count, word in table.items()} | {"one": 1}


def _inverse(table: dict[str, str]) -> dict[str, str]:
    return {word: value for value, word in table.items()}


def parse(text: str) -> Claim | None:
    """The claim that ``text`` makes, or None where it is not of the grammar. Case and a full stop are free."""
    text = " ".join(text.strip().rstrip(".。").lower().replace("center", "centre").split())
    return _parse_zh(text) if _ZH.match(text) else _parse_en(text)


def _parse_en(text: str) -> Claim | None:
    match = _EN.match(text)
    first = _read_en(match)
    if match is None or first is None:
        return None
    rest = text[match.end() :]
    if rest and not rest.startswith(" "):
        return None
    rest = rest.removeprefix(" ")
    relation = next((name for name in RELATIONS if rest.startswith(name + " ")), None)
    if relation is not None:
        second = _read_en(_EN.fullmatch(rest, len(relation) + 1))
        return (
            None if second is None else Claim.model_validate({"first": first, "second": second, "relation": relation})
        )
    return _with_position(first, rest, _inverse(_POSITION_EN))


def _parse_zh(text: str) -> Claim | None:
    match = _ZH.match(text)
    if match is None:
        return None
    first, rest = _read_zh(match), text[match.end() :]
    if rest and not rest.startswith("在"):
        return None
    rest = rest.removeprefix("在")
    other = _ZH.match(rest)
    if other is None:
        return _with_position(first, rest, _inverse(_POSITION_ZH))
    relation = _inverse(_RELATION_ZH).get(rest[other.end() :].removeprefix("的"))
    if relation is None or rest[other.end()] != "的":
        return None
    return Claim.model_validate({"first": first, "second": _read_zh(other), "relation": relation})


def _with_position(group: ObjectGroup, words: str, positions: dict[str, str]) -> Claim | None:
    """The claim of one group and what follows it: nothing, or a position that only a single object may have."""
    if words and (words not in positions or group.count != 1):
        return None
    return Claim.model_validate({"first": group, "position": positions.get(words)})


def _read_en(match: re.Match[str] | None) -> ObjectGroup | None:
    if match is None or (_COUNTS[match["count"]] > 1) != bool(match["plural"]):
        return None
    names = {name: match[name] for name in ("colour", "shape", "size")}
    return ObjectGroup.model_validate(
        names | {"count": _COUNTS[match["count"]], "texture": match["texture"] or "solid"}
    )


def _read_zh(match: re.Match[str]) -> ObjectGroup:
    texture = _inverse(_TEXTURE_ZH)[match["texture"]] if match["texture"] else "solid"
    size = _inverse(_SIZE_ZH)[match["size"]] if match["size"] else None
    names = {"colour": _inverse(_COLOUR_ZH)[match["colour"]], "shape": _inverse(_SHAPE_ZH)[match["shape"]]}
    return ObjectGroup.model_validate(names | {"count": _COUNTS[match["count"]], "texture": texture, "size": size})


# ---------------------------------------------------------------------------------------------- chance


def draw_claim(rng: np.random.Generator, held_out: bool = False, related: float = 0.25) -> Claim:
    """A random claim that fits: the share ``related`` two groups in a relation, and of the others 11 in 15 one object
    at a place, 4 in 15 two or three alike.

    With ``held_out`` every claim has a held-out combination, without it none has.
    """
    kind = rng.random() / (1 - related) if related < 1 else 1.0
    invent = _one if kind < 11 / 15 else _some if kind < 1 else _related
    while True:
        claim = invent(rng)
        if fits(claim) and is_held_out(claim) == held_out:
            return claim


def _pick(rng: np.random.Generator, values: tuple, weights: tuple[float, ...] | None = None) -> object:
    return values[int(rng.choice(len(values), p=weights))]


def _group(rng: np.random.Generator, count: int, small: float, large: float, textured: float) -> dict[str, object]:
    """A random group: said to be small or large with those shares, otherwise of no said size; large may be textured."""
    size = _pick(rng, ("small", "large", None), (small, large, 1 - small - large))
    texture = _pick(rng, ("striped", "hollow")) if size == "large" and rng.random() < textured else "solid"
    colour, shape = _pick(rng, COLOURS), _pick(rng, SHAPES)
    return {"count": count, "colour": colour, "shape": shape, "size": size, "texture": texture}


def _one(rng: np.random.Generator) -> Claim:
    group = _group(rng, 1, small=0.35, large=0.5, textured=0.55)
    return Claim.model_validate({"first": group, "position": _pick(rng, POSITIONS)})


def _some(rng: np.random.Generator) -> Claim:
    count = 2 + int(rng.random() < 0.5)
    group = _group(rng, count, small=0.5, large=0.3 if count == 2 else 0.0, textured=0.4)
    return Claim.model_validate({"first": group})


def _related(rng: np.random.Generator) -> Claim:
    groups = [_group(rng, 1 + int(rng.random() < 0.25), small=0.35, large=0.25, textured=0.3) for _ in range(2)]
    # Two colours, so that which object belongs to which group is never in doubt.
    others = tuple(colour for colour in COLOURS if colour != groups[0]["colour"])
    groups[1]["colour"] = _pick(rng, others)
    return Claim.model_validate({"first": groups[0], "second": groups[1], "relation": _pick(rng, RELATIONS)})
