"""The config of annotations."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dataprep.annotate_config import AnnotateConfig


def test_languages_are_checked() -> None:
    with pytest.raises(ValidationError, match="ISO 639-1"):
        AnnotateConfig(languages=("english",))
    with pytest.raises(ValidationError, match=r"not known to the classifier.*xx"):
        AnnotateConfig(languages=("en", "xx"))
