"""Copies in host memory: what is copied, and that pinned blocks are used again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train import host_copies
from train.config import TrainConfig
from train.engine import Engine
from train.host_copies import HostCopies


def test_a_rank_copies_only_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ZeRO nothing else is even touched; the shares of three ranks are the whole state, once."""
    engine = Engine(nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 3)), TrainConfig(batch_size=2, zero_stage=0))
    whole, copies, gather = dict(engine.full_state()), HostCopies(engine.device), engine._gather_slot
    gathered: list[nn.Parameter] = []

    def record(param: nn.Parameter, slot: str) -> torch.Tensor:
        gathered.append(param)
        return gather(param, slot)

    monkeypatch.setattr(engine, "_gather_slot", record)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for rank in range(3):
        copies.begin()
        gathered.clear()
        share = dict(engine.full_state(rank, 3, copies.copy))
        copies.finish()
        assert list(share) == list(whole)[rank::3]
        assert {id(param) for param in gathered} == {id(engine.params[name]) for name in share}
        assert copies.copied == 4 * sum(value.numel() for slots in share.values() for value in slots.values())
        found |= share
    assert all(torch.equal(found[name][slot], value) for name, slots in whole.items() for slot, value in slots.items())


def test_blocks_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_copies, "SLAB", 400)  # 100 numbers
    copies = HostCopies(torch.device("cpu"), pinned=True)
    sizes = [60, 30, 20, 250, 5]

    def copy_all(start: int) -> list[torch.Tensor]:
        copies.begin()
        values = [torch.arange(start, start + size, dtype=torch.bfloat16).view(-1, 5) for size in sizes]
        made = [copies.copy(value) for value in values]
        copies.finish()
        for value, copied in zip(values, made, strict=True):
            assert copied.dtype == torch.float32 and torch.equal(copied, value.float())
        assert copies.copied == 4 * sum(sizes)
        return made

    first = copy_all(0)
    kept = [slab.data_ptr() for slab in copies.slabs]
    assert [slab.numel() for slab in copies.slabs] == [100, 100, 250, 100]
    second = copy_all(1)
    assert [slab.data_ptr() for slab in copies.slabs] == kept
    assert [one.data_ptr() for one in first] == [other.data_ptr() for other in second]
    sizes.append(90)  # more than before: the old blocks, and a new one
    sizes.append(90)
    copy_all(2)
    assert [slab.data_ptr() for slab in copies.slabs][:4] == kept and len(copies.slabs) == 5


def test_plain_copies_are_independent() -> None:
    copies, value = HostCopies(torch.device("cpu")), torch.ones(3)
    made = copies.copy(value)
    value.zero_()
    copies.begin()
    assert made.tolist() == [1, 1, 1] and not copies.slabs
