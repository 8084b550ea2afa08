"""One source of the version."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError

import pytest

from dataprep.download.config import FetchConfig
from dataprep.io import version
from tests.helpers.paths import ROOT

STATED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_version_is_that_of_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    assert version.package_version() == STATED

    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(version, "version", missing)
    version.package_version.cache_clear()
    assert version.package_version() == STATED
    version.package_version.cache_clear()


def test_the_user_agent_states_the_version() -> None:
    assert FetchConfig().user_agent == f"imagen-ray/{STATED}"
