"""A drawn subject to fine-tune a model on: a striped purple square, which the embedded corpus does not have."""

from __future__ import annotations

import numpy as np

from dataprep.synthetic.grammar import NEW_COLOUR, Claim, ObjectGroup
from dataprep.synthetic.renderer import draw_scene

SUBJECT = ObjectGroup(count=1, colour=NEW_COLOUR, shape="square", size="large", texture="striped")
SUBJECT_IMAGES = 5


def draw_subject(number: int, size: int) -> np.ndarray:
    """Draws image ``number`` of the subject, in the centre: uint8 RGB (size, size, 3)."""
    claim = Claim(first=SUBJECT, position="centre")
    return draw_scene(claim, np.random.default_rng([77, number]), size)
