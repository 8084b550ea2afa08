"""Fixtures: tiny text encoders."""

from __future__ import annotations

import pytest

from tests.helpers.encoders import save_encoder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("t5"), "t5")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("bert"), "bert")
