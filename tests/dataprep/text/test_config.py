"""The config of embeddings."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dataprep.text.config import EmbedConfig


def test_config_errors() -> None:
    with pytest.raises(ValidationError):
        EmbedConfig.model_validate({"codec": "int4"})
