"""The order of the tests."""

from __future__ import annotations

import pytest

LONGEST = ("test_end_to_end.py", "test_your_urls.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: two processes that share the files would else wait for the one that got the last."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
