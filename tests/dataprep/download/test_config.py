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


@pytest.mark.parametrize(
    "entry", ["10.0.0.0/33", "host:0", "host:70000", "http://host/", "a b", "", "167837953", "host/8"]
)
def test_what_is_no_host_is_refused_by_name(entry: str) -> None:
    with pytest.raises(ValidationError, match="is no host; give a name, an address or a network"):
        DownloadConfig.model_validate({"fetch": {"allow_hosts": ["images.example", entry]}})


def test_hosts_of_a_yaml_list() -> None:
    config = DownloadConfig.model_validate({"fetch": {"allow_hosts": ["images.example:8080", "fd00::/8", "10.0.0.1"]}})
    assert config.fetch.allow_hosts == ("images.example:8080", "fd00::/8", "10.0.0.1")
