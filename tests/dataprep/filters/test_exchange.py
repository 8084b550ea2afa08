"""Files of parts: what is written by part is read by part, in order, whatever the chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataprep.filters import exchange
from dataprep.filters.exchange import MAX_PARTS, PART_BYTES, VERDICT, Parts, PartWriter, count_parts, spread


def verdicts(first: int, count: int) -> np.ndarray:
    made = np.zeros(count, VERDICT)
    made["position"] = np.arange(first, first + count)
    return made


@pytest.mark.parametrize("chunk_bytes", [1, 500, 1 << 20])
def test_parts_keep_the_order_of_files_and_records(
    tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "CHUNK_BYTES", chunk_bytes)
    rng, dealt, paths = np.random.default_rng(0), list[tuple[int, int]](), list[str]()
    for file in range(3):
        paths.append(str(tmp_path / f"{file}.bin"))
        with PartWriter(paths[-1], VERDICT, 6) as writer:
            for start in range(0, 100, 10):
                number_N = rng.integers(0, 5, 10)  # none in the last part
                record_N = verdicts(1000 * file + start, 10)
                writer.add(record_N, number_N)
                dealt += zip(number_N.tolist(), record_N["position"].tolist(), strict=True)
        assert writer.records == 100
    parts = Parts(tuple(paths), 6, 300)
    for number in range(6):
        expected = [position for part, position in dealt if part == number]
        assert parts.read(number, VERDICT)["position"].tolist() == expected
    assert not len(parts.read(5, VERDICT)) and not list(parts.iterate(5, VERDICT))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.bin", "1.bin", "2.bin"]  # no spool is left


def test_a_file_without_records_and_no_file_at_all(tmp_path: Path) -> None:
    with PartWriter(tmp_path / "empty.bin", VERDICT, 3):
        pass
    for paths in ((str(tmp_path / "empty.bin"),), ()):
        assert not len(Parts(paths, 3, 0).read(2, VERDICT))


def test_after_an_error_there_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), PartWriter(tmp_path / "a.bin", VERDICT, 3) as writer:
        writer.add(verdicts(0, 5), np.zeros(5, np.int64))
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_other_records_are_refused(tmp_path: Path) -> None:
    with pytest.raises(AssertionError), PartWriter(tmp_path / "a.bin", VERDICT, 3) as writer:
        writer.add(np.zeros(3), np.zeros(3, np.int64))


def test_the_number_of_parts() -> None:
    assert count_parts(0, 24) == count_parts(1, 24) == count_parts(PART_BYTES // 24, 24) == 1
    assert count_parts(PART_BYTES, 3) == 3
    assert count_parts(10**12, 100) == MAX_PARTS


def test_values_are_spread_evenly() -> None:
    for step in (1, 10_000, 1 << 40):
        count_P = np.bincount(spread(np.arange(20_000) * step, 7), minlength=7)
        assert len(count_P) == 7 and count_P.min() > 0.9 * 20_000 / 7
