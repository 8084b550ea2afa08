"""Writing tars: the bytes of `tarfile`."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from dataprep.download.tar_writer import TarWriter


@pytest.mark.parametrize("count", [0, 1, 6, 7, 40])
def test_the_bytes_are_those_of_tarfile(tmp_path: Path, count: int) -> None:
    rng = np.random.default_rng(count)
    files = {
        f"{index:09d}.{'jpg' * (index % 3 + 1)}": rng.bytes(int(rng.choice([0, 1, 511, 512, 513, 70_000])))
        for index in range(count)
    }
    files |= {"é" * 50: b"a name of 100 bytes"} if count else {}
    with (
        TarWriter(tmp_path / "ours.tar") as ours,
        tarfile.open(tmp_path / "t.tar", "w", format=tarfile.USTAR_FORMAT) as t,
    ):
        for name, data in files.items():
            ours.add(name, data)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            t.addfile(member, io.BytesIO(data))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "t.tar").read_bytes()


def test_what_a_header_cannot_hold(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "a.tar") as tar, pytest.raises(ValueError, match="100 bytes"):
        tar.add("é" * 51, b"")
