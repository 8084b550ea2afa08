"""Batches on their way to a device."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.packs import write_embeddings, write_pack
from train.config import TrainConfig
from train.loader import feed as feeding
from train.loader.feed import DeviceFeed, map_tensors, to_device
from train.loader.loader import Batch, Loader
from train.loader.prefetch import count_threads, prefetch_batches
from train.loader.sampler import SampleRandom
from train.loader.stored_text import FIXED_LENGTHS, StoredText

COLUMNS = ("pixels_16", "pixels_64")
CPU, META = torch.device("cpu"), torch.device("meta")


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    folder = tmp_path_factory.mktemp("shards")
    pack, embed = write_pack(folder / "p.parquet", 0, 24), write_embeddings(folder / "e.parquet", 0, 24, "int8")
    return Loader([pack], [embed], COLUMNS, "train", 0, 8)


def test_a_stored_batch_is_small_and_becomes_the_batch(loader: Loader) -> None:
    stored, batch = loader.stored_batch(1), loader.batch(1)
    assert set(stored) == {*COLUMNS, "key", "caption", "index", "text"}
    assert set(batch) == {*COLUMNS, "key", "caption", "index", "text_BLD", "text_mask_BL"}
    text = stored["text"]
    assert isinstance(text, StoredText) and text.values_TD.dtype == torch.int8
    tokens = int(batch["text_mask_BL"].sum())
    assert text.values_TD.shape == (tokens, 8) and text.scale_T is not None and text.scale_T.shape == (tokens,)
    fed = to_device(stored, CPU)
    assert set(fed) == {*batch, "index_B"}
    for name, value in batch.items():
        assert torch.equal(fed[name], value) if isinstance(value, torch.Tensor) else fed[name] == value
    assert torch.equal(fed["index_B"], batch["index"])


def test_indices_stay_on_the_host(loader: Loader) -> None:
    fed = to_device(loader.stored_batch(0), META)
    assert fed["index"].device == CPU
    others = {name: value.device for name, value in fed.items() if isinstance(value, torch.Tensor) and name != "index"}
    assert set(others.values()) == {META} and len(others) == 5


def test_prefetched_batches_are_those_of_the_loader(loader: Loader) -> None:
    for workers in (0, 1, 3):
        config = TrainConfig(steps=5, batch_size=8, accumulation=2, workers=workers)
        with prefetch_batches(loader, config, 1, 0, 1, DeviceFeed(CPU, 3)) as batches:
            found = [(batch["key"], random.seed, random.step, random.indices) for batch, random in batches]
        expected = [(step, loader.batch(step, 0, 1, micro, 2)) for step in range(1, 5) for micro in (0, 1)]
        assert found == [(batch["key"], 3, step, batch["index"].tolist()) for step, batch in expected]


def test_a_batch_is_prepared_where_it_is_sent(loader: Loader) -> None:
    def prepare(batch: Batch, random: SampleRandom) -> Batch:
        return batch | {"inputs": (random.normal("noise", 3), batch["text_BLD"])}

    batch, random = DeviceFeed(CPU, 0, prepare).send(loader.stored_batch(1), 6)[:2]
    noise, text = batch["inputs"]
    assert torch.equal(noise, SampleRandom(0, 6, random.indices).normal("noise", 3)) and text is batch["text_BLD"]


def test_a_compiled_model_meets_few_lengths_on_a_cpu(loader: Loader) -> None:
    plain, padded = (DeviceFeed(CPU, 0, None, few).send(loader.stored_batch(0), 0).batch for few in (False, True))
    longest = plain["text_BLD"].shape[1]
    assert longest < FIXED_LENGTHS[0] == padded["text_BLD"].shape[1]
    assert torch.equal(padded["text_BLD"][:, :longest], plain["text_BLD"]) and not padded["text_BLD"][:, longest:].any()
    assert torch.equal(padded["text_mask_BL"][:, :longest], plain["text_mask_BL"])
    assert not padded["text_mask_BL"][:, longest:].any()


@pytest.mark.parametrize(
    ("workers", "device", "cpus", "threads"),
    [
        (0, "cuda", 8, 0),
        (3, "cuda", 8, 3),
        (None, "cpu", 8, 1),
        (None, "cuda", 8, 7),
        (None, "cuda", 1, 1),
        (None, "cuda", 99, 16),
    ],
)
def test_a_gpus_rank_loads_with_its_cpus(
    workers: int | None, device: str, cpus: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: cpus)
    assert count_threads(workers, torch.device(device)) == threads


class FakeStream:
    """A CUDA stream that records what is asked of it."""

    def __init__(self, log: list[tuple[str, Any]], name: str) -> None:
        self.log, self.name = log, name

    def wait_event(self, event: Any) -> None:
        self.log.append(("wait", (self.name, event.stream)))

    def __enter__(self) -> None:
        self.log.append(("enter", self.name))

    def __exit__(self, *_: object) -> None:
        self.log.append(("leave", self.name))


class FakeEvent:
    """A CUDA event."""

    def record(self, stream: FakeStream) -> None:
        self.stream = stream.name
        stream.log.append(("record", stream.name))


@pytest.fixture
def cuda_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, Any]]]:
    """Calls of torch.cuda and of tensors, in order, by a feed to a GPU that is the meta device."""
    log: list[tuple[str, Any]] = []
    move = torch.Tensor.to
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream(log, "copies"))
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream(log, "compute"))

    def fake_pin(value: torch.Tensor) -> torch.Tensor:
        log.append(("pin", value.shape))
        return value

    monkeypatch.setattr(feeding, "_pin", fake_pin)

    def fake_move(value: torch.Tensor, device: Any, **options: Any) -> torch.Tensor:
        if getattr(device, "type", None) != "cuda":
            return move(value, device, **options)
        log.append(("copy", options))
        return move(value, META)

    monkeypatch.setattr(torch.Tensor, "to", fake_move)
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda value, stream: log.append(("use", (value.shape, stream.name)))
    )
    yield log


def test_a_gpu_copies_from_pinned_memory_in_a_stream_of_its_own(
    loader: Loader, cuda_calls: list[tuple[str, Any]]
) -> None:
    feed = DeviceFeed(
        torch.device("cuda", 0), 0, lambda batch, random: batch | {"inputs": (random.normal("noise", 3), "x")}
    )
    stored = loader.stored_batch(0)
    shapes: list[Any] = []
    map_tensors(stored | {"index_B": stored["index"]}, lambda value: note(shapes, value, "shape"))
    assert len(shapes) == 7  # two pixel columns, four of the captions, the indices
    fed = feed.send(stored, 0)
    inside = [pair for shape in shapes for pair in (("pin", shape), ("copy", {"non_blocking": True}))]
    assert cuda_calls == [("enter", "copies"), *inside, ("record", "copies"), ("leave", "copies")]
    cuda_calls.clear()
    batch, random = feed.receive(fed)
    used = {name: value.shape for name, value in batch.items() if isinstance(value, torch.Tensor) and name != "index"}
    assert set(used) == {*COLUMNS, "index_B", "text_BLD", "text_mask_BL"}
    expected = [("use", (shape, "compute")) for shape in [*used.values(), (8, 3)]]
    assert cuda_calls == [("wait", ("compute", "copies")), *expected]
    assert batch["inputs"][0].is_meta and random.device == META and np.array_equal(batch["index"], stored["index"])


def note(values: list[Any], value: torch.Tensor, name: str) -> torch.Tensor:
    """Appends an attribute of a tensor to ``values``, and returns the tensor."""
    values.append(getattr(value, name))
    return value


def test_a_packs_bytes_are_what_is_sent(loader: Loader, tmp_path: Path) -> None:
    sizes: list[int] = []
    stored = loader.stored_batch(0)
    map_tensors(stored, lambda value: note(sizes, value, "nbytes"))
    tokens = len(stored["text"].values_TD)
    assert sum(sizes) == 8 * 3 * (16**2 + 64**2) + tokens * (8 + 4) + 8 * (8 + 8)
