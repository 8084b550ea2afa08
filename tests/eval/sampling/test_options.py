"""Settings of a stage under the changes that are asked for."""

from __future__ import annotations

from typing import Any

import pytest

from dataprep.io.errors import UserError
from eval.sampling.config import SamplingConfig, StageEntry
from eval.sampling.options import override_sampling

FITTED, LISTED = {"log_snrs": (-9.0, -2.0, 1.0)}, {"timesteps": (999, 500, 0)}


@pytest.mark.parametrize(
    ("default", "changes", "evaluations"),
    [
        (FITTED, {"steps": {"base": 8}, "log_snrs": {"sr": (-9, 0)}}, 8),  # the list is another stage's
        (FITTED, {"steps": {"sr": 8}, "guidance": 2}, 3),
        (FITTED, {"spacing": "karras", "steps": None}, 20),
        (FITTED, {"timesteps": (999, 0)}, 2),
        (LISTED, {"steps": 50}, 50),
        (LISTED, {"spacing": "leading"}, 20),
        (LISTED, {"log_snrs": (-9, -2, 0, 1)}, 4),
        (LISTED, {"steps": 50, "log_snrs": (-9, 0)}, 2),
    ],
)
def test_asked_for_steps_replace_listed_ones(default: Any, changes: dict[str, Any], evaluations: int) -> None:
    entry = StageEntry(name="base", resolution=8, path="base", sampling=SamplingConfig(**default))
    assert override_sampling(entry, changes).count_evaluations() == evaluations


def test_two_lists_are_refused() -> None:
    entry = StageEntry(name="base", resolution=8, path="base")
    with pytest.raises(UserError, match="are two lists of one thing; give one"):
        override_sampling(entry, {"log_snrs": (-9, 0), "timesteps": (999, 0)})
