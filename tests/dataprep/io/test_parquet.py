"""Kinds and versions of Parquet files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io.errors import UserError
from dataprep.io.parquet import KINDS, VERSION_KEY, read_schema, read_table, write_table
from tests.helpers.paths import ROOT

TABLE = pa.table({"key": ["a", "b"]})


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_read_back(kind: str, tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "a.parquet", kind)
    assert read_table(tmp_path / "a.parquet", kind).equals(TABLE)
    assert read_schema(tmp_path / "a.parquet", kind).names == ["key"]


def test_other_kinds_versions_and_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(TABLE, path, "scores")
    with pytest.raises(UserError, match="expected a file of kind 'selection', found 'scores'"):
        read_table(path, "selection")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata(table.schema.metadata | {VERSION_KEY: b"99"}), path)
    with pytest.raises(UserError, match="scores schema version 99, this imagen-ray reads 1"):
        read_schema(path, "scores")
    pq.write_table(TABLE, path)
    with pytest.raises(UserError, match="imagen-ray did not write"):
        read_table(path, "scores")
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match="delete it and run again"):
        read_table(path, "scores")


def test_row_groups_must_add_up(tmp_path: Path) -> None:
    write_table(TABLE, tmp_path / "a.parquet", "scores", row_groups=[1, 1])
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2
    with pytest.raises(ValueError, match="row groups of 3 rows for a table of 2"):
        write_table(TABLE, tmp_path / "b.parquet", "scores", row_groups=[3])


PANDAS = """
import sys
import dataprep.io.parquet
import pyarrow as pa

table = pa.table({"a": pa.array([1, None])})
assert "pandas" not in sys.modules, "converting a list imported pandas"
assert table.to_pandas()["a"].isna().tolist() == [False, True]
import pandas
assert pa.array(pandas.Series([1.0, float("nan")])).null_count == 1
"""


def test_converting_a_list_imports_no_pandas_and_pandas_still_works() -> None:
    done = subprocess.run([sys.executable, "-c", PANDAS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
