"""GenEval's names of object classes, and COCO's where they differ."""

from __future__ import annotations

COCO_NAMES = {"computer mouse": "mouse", "tv remote": "remote", "computer keyboard": "keyboard"}


def to_coco_name(name: str) -> str:
    """Returns COCO's name of a class of GenEval."""
    return COCO_NAMES.get(name, name)
