"""The config of the download."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dataprep.download.config import DownloadConfig


def test_config_errors() -> None:
    with pytest.raises(ValidationError, match="between 0 and 9"):
        DownloadConfig(encode_format="png")
    with pytest.raises(ValidationError):
        DownloadConfig.model_validate({"resize_mode": "stretch"})
