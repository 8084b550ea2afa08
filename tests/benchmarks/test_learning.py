"""The comparison of learning with peers: how seconds to an error are read off, and the claims of rows."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.learning import OURS, PEERS, make_claims, seconds_to_reach
from benchmarks.learning_peers import PeerNetwork
from train.models.base import Conditions, DenoiserConfig

LENGTHS = [{"cpu_seconds": 10.0, "error": 0.4}, {"cpu_seconds": 40.0, "error": 0.1}]


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        pytest.param(0.2, 20.0, id="between, halfway in both logarithms"),
        pytest.param(0.1, 40.0, id="at the longest"),
        pytest.param(0.5, 10.0, id="the shortest reaches it"),
        pytest.param(0.05, float("inf"), id="none reaches it"),
    ],
)
def test_seconds_to_reach_interpolates_between_lengths(error: float, seconds: float) -> None:
    assert seconds_to_reach(LENGTHS[::-1], error) == pytest.approx(seconds)


def make_row(side: str, seconds: float, error: float, share: float = 1.0, right: float = 0.5) -> dict[str, Any]:
    found = {"side": side, "seed": 0, "share": share, "cpu_seconds": seconds, "error": error}
    return found | {"seen": {"all": right}, "heldout": {"all": right}}


def test_claims_compare_with_each_peer_and_with_the_better_accuracy() -> None:
    rows = [make_row(OURS, 10.0, 0.4, share=0.25, right=0.1), make_row(OURS, 40.0, 0.1, right=0.75)]
    rows += [make_row(peer, 40.0, error, right=0.25) for peer, error in zip(PEERS, (0.2, 0.4), strict=True)]
    claims = {claim["claim"]: claim["value"] for claim in make_claims(rows)}
    means = [value for text, value in claims.items() if text.endswith("mean of 1 seeds")]
    assert means == [pytest.approx(2.0), pytest.approx(4.0)]
    assert [value for text, value in claims.items() if "better peer" in text] == [0.5, 0.5]


class Whole(PeerNetwork):
    """Returns 1 for rows with captions, 0 for rows without, and takes no batch of both."""

    def predict(self, x_BCHW: torch.Tensor, log_snr_B: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        keep_B = conditions.text_keep_B
        assert keep_B is not None and keep_B.float().mean() in (0, 1)
        return torch.ones_like(x_BCHW) * keep_B[:, None, None, None]


def test_a_guided_batch_is_two_calls_of_a_peers_network() -> None:
    network = Whole(DenoiserConfig(), torch.nn.Identity()).eval()
    conditions = Conditions(torch.zeros(4, 3, 8), torch.ones(4, 3, dtype=torch.bool), torch.arange(4) < 2)
    output_BCHW = network(torch.zeros(4, 3, 2, 2), torch.zeros(4), conditions)
    assert output_BCHW[:, 0, 0, 0].tolist() == [1, 1, 0, 0]
