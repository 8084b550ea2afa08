"""The config of the embedded corpus."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dataprep.synthetic.config import TroubleRates


def test_rates_that_add_up_to_too_much_are_refused() -> None:
    with pytest.raises(ValidationError, match="keep the sum at or below"):
        TroubleRates(dead_link=0.95)
