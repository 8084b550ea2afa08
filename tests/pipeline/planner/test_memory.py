"""Memory by ZeRO stage, and the smallest setting that fits."""

from __future__ import annotations

import pytest

from pipeline.planner.catalog import Assumptions, Machine
from pipeline.planner.memory import (
    Fit,
    MemorySetting,
    count_device_bytes,
    estimate_memory,
    find_smallest_fit,
    list_settings,
)
from pipeline.planner.network import Activations

MILLION = 1_000_000
ASSUMED = Assumptions()
NONE = Activations(0.0, 0)


def machine(memory_gb: float, gpus: int = 8, ram_gb: float = 2000.0) -> Machine:
    return Machine(
        gpus=gpus,
        device="a GPU",
        memory_gb=memory_gb,
        tflops=100.0,
        mfu=0.3,
        encode_mfu=0.4,
        cores=8,
        ram_gb=ram_gb,
        network_gbit=100.0,
        internet_gbit=10.0,
        price=1.0,
        source="made up",
    )


@pytest.mark.parametrize(("zero", "states"), [(0, 20.0), (1, 4 + 4 + 16 / 4), (2, 4 + 5.0), (3, 6.0)])
def test_states_in_fp32_are_the_theory(zero: int, states: float) -> None:
    memory = estimate_memory(MILLION, MemorySetting("adamw", zero, "none", False, "fp32"), 4, NONE, 1)
    assert memory.states == pytest.approx(states * MILLION)
    assert memory.buckets == (4 * MILLION if zero == 3 else 0)  # gathered
    assert memory.update == memory.host == 0


def test_bf16_halves_weights_and_gradients_where_masters_are_elsewhere() -> None:
    sharded = estimate_memory(MILLION, MemorySetting("adamw", 2, "none", False, "bf16"), 4, NONE, 1)
    assert (sharded.weights, sharded.gradients) == (2 * MILLION, 2 * MILLION / 4)
    assert sharded.optimizer + sharded.ema == 16 * MILLION / 4
    whole = estimate_memory(MILLION, MemorySetting("adamw", 0, "none", False, "bf16"), 4, NONE, 1)
    assert whole.weights == 4 * MILLION


def test_adafactor_keeps_weights_gradients_and_the_average() -> None:
    memory = estimate_memory(MILLION, MemorySetting("adafactor", 0, "none", False, "fp32"), 1, NONE, 1)
    assert memory.states == pytest.approx(12 * MILLION, rel=0.01)


def test_what_is_offloaded_is_on_the_host() -> None:
    here = estimate_memory(MILLION, MemorySetting("adamw", 2, "none", False, "bf16"), 2, NONE, 1)
    there = estimate_memory(MILLION, MemorySetting("adamw", 2, "optimizer", False, "bf16"), 2, NONE, 1)
    assert there.optimizer == there.ema == 0
    assert there.host >= here.optimizer + here.ema
    nothing = estimate_memory(MILLION, MemorySetting("adamw", 3, "all", False, "bf16"), 2, NONE, 1)
    assert nothing.states == 0


def test_the_update_counts_where_activations_are_small() -> None:
    setting = MemorySetting("adamw", 2, "none", False, "bf16")
    small, large = (estimate_memory(MILLION, setting, 1, Activations(size, 0), 1) for size in (0.0, 1e9))
    assert small.device == small.states + 4 * MILLION
    assert large.device == large.states + 1e9


def fit(memory_gb: float, optimizer: str = "adamw", ram_gb: float = 2000.0) -> Fit | None:
    """The smallest that fits a model of 2G parameters with 1 GB of activations a sample, a fifth recomputed."""

    def followed(setting: MemorySetting) -> Activations:
        return Activations(2e8 if setting.recompute else 1e9, 10**8)

    return find_smallest_fit(
        2_000_000_000, optimizer, "bf16", 32, machine(memory_gb, ram_gb=ram_gb), 1, ASSUMED, followed
    )


def test_the_more_memory_the_less_is_sharded() -> None:
    order = list(list_settings("adamw", "bf16", 2_000_000_000))
    places = []
    for size in (141, 80, 40, 24, 16, 8):
        found = fit(size)
        assert found is None or found.needed <= size * 1e9
        places.append(len(order) if found is None else order.index(found.setting))
    assert places == sorted(places)
    assert places[0] == 0


def test_a_micro_batch_divides_the_ranks_share_and_is_the_largest_that_fits() -> None:
    found = fit(80)
    assert found is not None
    assert 32 % found.micro_batch == 0
    if found.micro_batch < 32:
        larger = estimate_memory(2_000_000_000, found.setting, 8, Activations(1e9, 0), found.micro_batch * 2)
        assert count_device_bytes(larger, machine(80), ASSUMED) > 80e9


def test_muon_keeps_one_moment_of_whole_matrices() -> None:
    first = next(iter(list_settings("muon", "fp32", 10)))
    assert str(first) == "Muon, ZeRO 0"
    assert estimate_memory(MILLION, first, 1, NONE, 1).states == 16 * MILLION


def test_adafactor_is_tried_first_where_the_config_has_it() -> None:
    large, small = fit(141, "adafactor"), fit(24, "adafactor")
    assert large is not None and large.setting.optimizer == "adafactor"
    assert small is not None and small.setting.optimizer == "adamw"


def test_offloading_needs_memory_in_the_machine() -> None:
    offloaded = fit(9, ram_gb=2000.0)
    assert offloaded is not None and offloaded.setting.offload != "none"
    assert fit(9, ram_gb=16.0) is None


def test_small_networks_keep_new_gradients_and_zero_3_small_parameters() -> None:
    followed = Activations(100.0, 0, 0, 4 * MILLION, 10.0, 1000)
    two, one = (
        estimate_memory(MILLION, MemorySetting("adamw", zero, "none", False, "fp32"), 4, followed, 8) for zero in (2, 1)
    )
    assert (one.activations, two.activations) == (800.0, 4 * MILLION + 80.0)
    three = estimate_memory(MILLION, MemorySetting("adamw", 3, "none", False, "fp32"), 4, followed, 8)
    assert three.weights == 4 * (1000 + (MILLION - 1000) / 4)


def test_a_model_that_needs_no_sharding_is_tried_without() -> None:
    assert next(list_settings("adamw", "bf16", 400_000_000)).zero == 0
    assert all(setting.zero for setting in list_settings("adamw", "bf16", 2_000_000_000))


def test_sums_of_micro_batches_are_fp32_under_zero_2_alone() -> None:
    def gradients(zero: int, accumulates: bool) -> float:
        setting = MemorySetting("adamw", zero, "none", False, "bf16")
        return estimate_memory(MILLION, setting, 4, NONE, 1, accumulates).gradients

    assert [gradients(2, accumulates) for accumulates in (False, True)] == [2 * MILLION / 4, 4 * MILLION / 4]
    assert gradients(1, True) == 2 * MILLION and gradients(3, True) == 2 * MILLION / 4


def test_nothing_fits_where_nothing_can() -> None:
    assert fit(1) is None


@pytest.mark.parametrize("zero", [0, 2, 3])
def test_frozen_parameters_count_as_weights_alone(zero: int) -> None:
    setting = MemorySetting("adamw", zero, "none", False, "fp32")
    alone, beside = (
        estimate_memory(MILLION, setting, 2, Activations(0, 0, frozen=frozen), 1) for frozen in (0, 9 * MILLION)
    )
    share = 2 if zero == 3 else 1
    assert beside.weights - alone.weights == 4 * 9 * MILLION / share
    for part in ("gradients", "optimizer", "ema", "update"):
        assert getattr(beside, part) == getattr(alone, part)
