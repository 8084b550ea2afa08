"""The config of packs."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dataprep.pack_config import PackConfig


def test_config_errors() -> None:
    with pytest.raises(ValidationError, match="occurs twice"):
        PackConfig(resolutions=(16, 16))
    with pytest.raises(ValidationError):
        PackConfig(resolutions=())
    assert PackConfig.model_validate({"resolutions": [8, 32]}).resolutions == (8, 32)  # as YAML gives it
