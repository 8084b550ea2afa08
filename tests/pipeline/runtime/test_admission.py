"""Which stages run concurrently, and each pool's share of the cluster."""

from __future__ import annotations

import pytest

from pipeline.runtime.admission import ClusterShares, Reservation
from pipeline.runtime.resources import WorkerNeed

GROUP = Reservation(WorkerNeed(1, 1), ranks=8)
POOL = Reservation(WorkerNeed(1))
DRIVER = Reservation(WorkerNeed(), ranks=1)


def test_groups_keep_their_resources_and_pools_share_the_rest() -> None:
    shares = ClusterShares({"CPU": 64, "GPU": 16}.__getitem__)
    for name, reservation in [("train.base", GROUP), ("train.sr", GROUP), ("annotate", POOL)]:
        assert shares.admits(reservation)
        shares.add(name, reservation)
    assert not shares.admits(GROUP)  # 16 of 16 GPUs are reserved
    assert shares.max_workers("annotate", WorkerNeed(1)) == 48
    shares.add("score", POOL)
    assert shares.max_workers("annotate", WorkerNeed(1)) == 24 and shares.max_workers("score", WorkerNeed(2)) == 12
    for name in ("train.base", "train.sr", "score"):
        shares.remove(name)
    assert shares.max_workers("annotate", WorkerNeed(1)) is None


@pytest.mark.parametrize("first", [POOL, Reservation(WorkerNeed(1), ranks=2)])
def test_two_cpus_run_one_stage_at_a_time(first: Reservation) -> None:
    shares = ClusterShares({"CPU": 2, "GPU": 0}.__getitem__)
    assert shares.admits(Reservation(WorkerNeed(1), ranks=9))  # alone: if it cannot fit at all, Ray reports that
    shares.add("first", first)
    assert not any(shares.admits(second) for second in (POOL, Reservation(WorkerNeed(1), ranks=2), DRIVER))
