"""Garbage collection is postponed, and is as before afterwards."""

from __future__ import annotations

import gc

import pytest

from dataprep.io.garbage import postpone_collection


def test_collection_is_as_before_afterwards() -> None:
    assert gc.isenabled()
    with pytest.raises(KeyError), postpone_collection():
        assert not gc.isenabled()
        with postpone_collection():
            pass
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()
