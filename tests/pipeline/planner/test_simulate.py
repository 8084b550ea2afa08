"""The simulation against closed forms and against a plain event loop."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.planner.simulate import (
    FailureRates,
    NeverEndsError,
    Training,
    WorkQueue,
    find_best_interval,
    simulate_queue,
    simulate_stages,
    simulate_training,
)

QUIET = FailureRates(0.0, 0.0)


def random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize(
    ("shards", "nodes", "slots"), [(1, 1, 1), (7, 3, 2), (1000, 4, 2), (1001, 4, 2), (12_345, 7, 3), (5, 100, 8)]
)
def test_without_failures_a_bag_takes_its_rounds(shards: int, nodes: int, slots: int) -> None:
    outcome = simulate_queue(WorkQueue(shards, 10.0, nodes, slots), QUIET, random())
    assert outcome.end == pytest.approx(10.0 * math.ceil(shards / (nodes * slots)))
    assert (outcome.failures, outcome.lost) == (0, 0.0)


def test_an_empty_bag_takes_no_time() -> None:
    assert simulate_queue(WorkQueue(0, 10.0, 4), QUIET, random()).end == 0


def test_without_failures_training_takes_its_work_and_its_checkpoints() -> None:
    assert simulate_training(Training(1000.0, 8, 100.0, 5.0), QUIET, random()).end == pytest.approx(1050.0)
    assert simulate_training(Training(950.0, 8, 100.0, 5.0), QUIET, random()).end == pytest.approx(1000.0)


def expect_training(training: Training, faults: FailureRates) -> float:
    """Expected seconds of a training (Daly 2006, equation 20, with the wait for a machine added).

    With mean time between failures of the group M, interval t, save s, restart r and repair p, an interval takes
    (M + p) e^(r / M) (e^((t + s) / M) - 1).
    """
    rate = faults.rate * training.nodes
    if rate == 0:
        return training.seconds + training.save * math.ceil(training.seconds / training.interval)
    each = (1 / rate + faults.repair) * math.exp(rate * faults.restart)
    return training.seconds / training.interval * each * math.expm1(rate * (training.interval + training.save))


@pytest.mark.parametrize("per_interval", [0.05, 0.3, 1.0])
def test_training_under_failures_is_dalys_expectation(per_interval: float) -> None:
    training = Training(4e6, 100, 3600.0, 60.0)
    faults = FailureRates(per_interval / 3600 / 100, 600.0, 300.0)
    ends = [simulate_training(training, faults, random(seed)).end for seed in range(40)]
    assert np.mean(ends) == pytest.approx(expect_training(training, faults), rel=0.02)


def by_events(training: Training, faults: FailureRates, rng: np.random.Generator) -> float:
    """The same training event by event, written down as it happens."""
    mean = 1 / (faults.rate * training.nodes)
    time, done, fails = 0.0, 0.0, rng.exponential(mean)
    while done < training.seconds - 1e-6:
        part = min(training.interval, training.seconds - done)
        if time + part + training.save <= fails:
            time, done = time + part + training.save, done + part
            continue
        time = fails
        while True:
            time += faults.repair
            fails = time + rng.exponential(mean)
            if fails >= time + faults.restart:
                time += faults.restart
                break
            time = fails
    return time


def test_training_agrees_with_an_event_loop() -> None:
    training, faults = Training(1e6, 50, 1800.0, 30.0), FailureRates(4e-6, 900.0, 600.0)
    ours = [simulate_training(training, faults, random(seed)).end for seed in range(100)]
    plain = [by_events(training, faults, random(seed + 1000)) for seed in range(100)]
    assert np.mean(ours) == pytest.approx(np.mean(plain), rel=0.02)


def test_youngs_interval_is_where_the_expectation_is_least() -> None:
    faults = FailureRates(1e-7, 0.0, 0.0)
    best = find_best_interval(faults.rate * 100, 30.0)

    def takes(interval: float) -> float:
        return expect_training(Training(1e6, 100, interval, 30.0), faults)

    assert takes(best) < min(takes(best / 2), takes(best * 2))


def test_a_bag_under_failures_takes_what_renewals_say() -> None:
    """A machine's life ends e^(-rd) / (1 - e^(-rd)) shards in the mean, and takes 1/r and the repair."""
    bag, faults = WorkQueue(200_000, 600.0, 50), FailureRates(1e-4, 1800.0)
    ends = [simulate_queue(bag, faults, random(seed)).end for seed in range(8)]
    whole = math.exp(-faults.rate * bag.seconds)
    rate = whole / (1 - whole) / (1 / faults.rate + faults.repair)
    assert np.mean(ends) == pytest.approx(bag.shards / bag.nodes / rate, rel=0.01)


def test_shards_of_a_failed_machine_are_done_by_others() -> None:
    outcome = simulate_queue(WorkQueue(40, 100.0, 4, 2), FailureRates(1 / 300.0, 50.0), random(3))
    assert outcome.failures > 0
    assert outcome.lost >= outcome.failures * 50.0
    assert outcome.end > 500.0


def test_the_seed_decides() -> None:
    bag, faults = WorkQueue(5000, 60.0, 20, 2), FailureRates(1e-4, 600.0)
    first, again, other = (simulate_queue(bag, faults, random(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_stage_waits_for_its_inputs_and_others_run_beside_it() -> None:
    stages: dict[str, WorkQueue | Training] = {
        "a": WorkQueue(10, 1.0, 1),
        "b": WorkQueue(5, 1.0, 1),
        "c": Training(100.0, 2, 10.0),
        "d": Training(50.0, 2, 10.0),
    }
    done = simulate_stages(stages, {"b": ["a"], "c": ["b"], "d": ["b"]}, dict.fromkeys(stages, QUIET), 0)
    assert [(outcome.start, outcome.end) for outcome in done.values()] == [(0, 10), (10, 15), (15, 115), (15, 65)]


def test_training_that_cannot_reach_a_checkpoint_is_refused() -> None:
    with pytest.raises(NeverEndsError, match="save every"):
        simulate_training(Training(1e6, 10_000, 36_000.0), FailureRates(1e-6, 600.0), random())


def test_ten_thousand_machines_and_ten_billion_urls() -> None:
    """A million shards of 10,000 rows: arrays of machines, no event a shard or URL."""
    bag, faults = WorkQueue(1_000_000, 300.0, 10_000, 16), FailureRates(0.01 / 3600, 1800.0)
    outcome = simulate_queue(bag, faults, random())
    assert outcome.failures > 10
    assert 1.0 <= outcome.end / (1_000_000 * 300.0 / 160_000) < 1.5
    gang = simulate_training(
        Training(30 * 86400.0, 10_000, 600.0, 20.0), FailureRates(1.6e-4 / 3600, 1800.0, 300.0), random()
    )
    assert 30 * 86400.0 < gang.end < 90 * 86400.0
