"""Files of parts: what is written by part is read by part, in order, whatever the chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from dataprep.filters import exchange
from dataprep.filters.exchange import (
    MAX_PARTS,
    PART_BYTES,
    VERDICT,
    Division,
    Parts,
    PartWriter,
    count_parts,
    divide,
    spread,
)


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


def test_more_parts_than_there_may_be_are_divided_into_pieces() -> None:
    assert divide(PART_BYTES, 3) == Division(3, 1)
    assert divide(PART_BYTES, 3, 2 * MAX_PARTS) == Division(1, 3)
    for records in (10**9, 10**10, 10**11):
        division = divide(records, 16, 84)
        assert division.parts * 84 <= MAX_PARTS and records * 16 / division.shares <= PART_BYTES


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_part_is_read_piece_by_piece(tmp_path: Path, pieces: int) -> None:
    paths = [str(tmp_path / f"{file}.bin") for file in range(2)]
    for file, path in enumerate(paths):
        with PartWriter(path, VERDICT, 2) as writer:
            writer.add(verdicts(100 * file, 100), np.arange(100) % 2)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    read = Division(2, pieces).read(
        Parts(tuple(paths), 2, 200), 1, VERDICT, lambda record_N: record_N["position"] % pieces, scratch
    )
    found = [record_N["position"].tolist() for record_N in read]
    assert found == [[row for row in range(1, 200, 2) if row % pieces == piece] for piece in range(pieces)]
    assert not list(scratch.iterdir())


def test_no_more_is_read_together_than_a_part_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [str(tmp_path / f"{file}.bin") for file in range(20)]
    for file, path in enumerate(paths):
        with PartWriter(path, VERDICT, 1) as writer:
            writer.add(verdicts(10 * file, 10 if file % 3 else 0), np.zeros(10 if file % 3 else 0, np.int64))
    monkeypatch.setattr(exchange, "PART_BYTES", 500)  # of files of 160
    sizes, read = list[int](), LocalFileSystem.cat_ranges

    def note(self: LocalFileSystem, paths: list[str], starts: Any, ends: list[int], **options: Any) -> Any:
        sizes.append(sum(ends) - sum(starts))
        return read(self, paths, starts, ends, **options)

    monkeypatch.setattr(LocalFileSystem, "cat_ranges", note)
    found = Parts(tuple(paths), 1, 130).read(0, VERDICT)
    assert found["position"].tolist() == [row for row in range(200) if row // 10 % 3]
    assert len(sizes) > 4 and max(sizes[1:]) <= 500 + 160


def test_values_are_spread_evenly() -> None:
    for step in (1, 10_000, 1 << 40):
        count_P = np.bincount(spread(np.arange(20_000) * step, 7), minlength=7)
        assert len(count_P) == 7 and count_P.min() > 0.9 * 20_000 / 7
