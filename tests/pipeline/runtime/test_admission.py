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


def test_pools_on_gpus_are_served_before_the_others() -> None:
    """Else download and annotate could hold the CPUs that the only worker of score needs, and wait for it."""
    shares = ClusterShares({"CPU": 16, "GPU": 1}.__getitem__)
    score = Reservation(WorkerNeed(8, 1), streamed=True)
    pools = {
        "download": Reservation(WorkerNeed(0.33), streamed=True),
        "annotate": Reservation(WorkerNeed(0.33)),
        "score": score,
    }
    for name, reservation in pools.items():
        shares.add(name, reservation)
    workers = {name: shares.max_workers(name, reservation.need) or 0 for name, reservation in pools.items()}
    assert workers == {"download": 12, "annotate": 12, "score": 1}
    assert sum(number * pools[name].need.cpus for name, number in workers.items()) <= 16


def test_a_streamed_pool_has_a_worker_per_cpu_at_most() -> None:
    shares = ClusterShares({"CPU": 2, "GPU": 0}.__getitem__)
    need = WorkerNeed(0.33)
    for name in ("download", "annotate", "score"):
        shares.add(name, Reservation(need, streamed=True))
        assert shares.max_workers(name, need) == 2
    shares.add("other", Reservation(need))
    assert [shares.max_workers(name, need) for name in ("download", "other")] == [1, 1]
    for name in ("download", "annotate", "score"):
        shares.remove(name)
    assert shares.max_workers("other", need) is None


def test_a_stage_may_join_where_one_worker_of_each_pool_fits() -> None:
    shares = ClusterShares({"CPU": 2, "GPU": 0}.__getitem__)
    shares.add("download", POOL)
    assert not shares.admits(POOL) and shares.admits_one(POOL)
    shares.add("annotate", POOL)
    assert not shares.admits_one(Reservation(WorkerNeed(0.5)))
    assert not shares.admits_one(Reservation(WorkerNeed(0, 1)))
