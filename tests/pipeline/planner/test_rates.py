"""Rows and bytes: counted, assumed, or measured on a trial."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataprep.io import storage
from dataprep.pack import write_pack
from dataprep.pack_config import PackConfig
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import write_embeddings
from pipeline.config_loading import load_config
from pipeline.planner.catalog import Assumptions
from pipeline.planner.rates import assume_rates, count_plain_bytes, measure_rates
from pipeline.store.artifact import Manifest, describe_file
from pipeline.store.run import Run, current_time
from tests.helpers.plans import SMOKE


def test_local_list_is_counted(tmp_path: Path) -> None:
    for number in range(2):
        pq.write_table(pa.table({"url": ["a"] * 150, "caption": ["b"] * 150}), tmp_path / f"{number}.parquet")
    overrides = ["listing.source=table", f"listing.path={tmp_path}/*.parquet"]
    rates = assume_rates(load_config(SMOKE, overrides), Assumptions())
    assert (rates.urls, rates.origin["urls"]) == (300, "counted in 2 files")
    limited = assume_rates(load_config(SMOKE, [*overrides, "listing.limit=100"]), Assumptions())
    assert limited.urls == 100
    away = assume_rates(load_config(SMOKE, ["listing.source=table", "listing.path=s3://b/*.parquet"]), Assumptions())
    assert (away.urls, away.origin["urls"]) == (Assumptions().urls, "assumed")
    assert assume_rates(load_config(SMOKE), Assumptions(), 5).urls == 5


def commit_stage(run: Run, stage: str, files: list[str], counters: dict[str, int]) -> None:
    """Commits a stage whose files are in its folder."""
    folder = run.stage_folder(stage, "f" * 16)
    outputs = [describe_file(folder, name) for name in files]
    run.commit(Manifest(stage, "f" * 16, {}, {}, outputs, counters, 1.0, {}))


def test_trial_gives_shares_and_sizes(tmp_path: Path) -> None:
    run, rows, width = Run(str(tmp_path / "run")), 64, 16
    config = load_config(SMOKE)
    for stage in ("download", "pack", "embed"):
        Path(run.stage_folder(stage, "f" * 16)).mkdir(parents=True)
    (Path(run.stage_folder("download", "f" * 16)) / "00000.tar").write_bytes(b"x" * 80_000)
    commit_stage(run, "download", ["00000.tar"], {"rows": 100, "success": 80})
    commit_stage(run, "select", [], {"rows": 100, "kept": rows})
    pack = PackConfig(resolutions=(16,))
    pixels = [np.zeros(768, np.uint8).tobytes()] * rows
    columns = {"key": [f"{n:09d}" for n in range(rows)], "caption": ["c"] * rows, "split": ["train"] * rows}
    packed = Path(run.stage_folder("pack", "f" * 16)) / "00000.parquet"
    write_pack(pa.table(columns | {"pixels_16": pixels}), packed, pack)
    commit_stage(run, "pack", ["00000.parquet"], {"rows": rows, "validation": 0})
    lengths = [5 + n % 3 for n in range(rows)]
    random = np.random.default_rng(0)
    values = [random.integers(0, 255, length * width * 2, dtype=np.uint8).tobytes() for length in lengths]
    embeddings = pa.table(
        {
            "key": columns["key"],
            "caption": columns["caption"],
            "length": pa.array(lengths, pa.int32()),
            "dim": pa.array([width] * rows, pa.int32()),
            "codec": ["float16"] * rows,
            "embedding": values,
            "scale": pa.array([None] * rows, pa.binary()),
        }
    )
    path = Path(run.stage_folder("embed", "f" * 16)) / "00000.parquet"
    write_embeddings(embeddings, path, EmbedConfig(compression="none"), [rows])
    commit_stage(run, "embed", ["00000.parquet"], {"captions": rows, "tokens": sum(lengths)})
    states = {name: {"fingerprint": "f" * 16, "state": "done"} for name in ("download", "select", "pack", "embed")}
    storage.write_json(run.path("run.json"), {"started": current_time(), "stages": states})

    rates = measure_rates(assume_rates(config, Assumptions()), run.root)
    assert (rates.success, rates.keep, rates.padded) == (0.8, rows / 80, 7)
    assert rates.tokens == sum(lengths) / rows
    assert rates.download_bytes == 1000
    assert rates.pixel_bytes[16] == pytest.approx(768, rel=0.05)
    assert rates.pixel_bytes[64] == 3 * 64 * 64  # the trial has no such column: as the config has it
    assert rates.embed_share == Assumptions().zstd_share  # not compressed: says nothing of zstd
    whole = rates.embedding_bytes(width, "float16", False) * rows
    assert whole == pytest.approx(path.stat().st_size, rel=0.05)
    assert rates.origin["keep"].startswith("measured in")


def test_plain_bytes_of_the_codecs() -> None:
    assert count_plain_bytes(20, 4096, "float16") == 20 * 4096 * 2
    assert count_plain_bytes(20, 4096, "int8") == 20 * (4096 + 4)
