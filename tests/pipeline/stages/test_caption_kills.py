"""Five hundred images described with drivers killed in between: no caption is lost, and the loader mixes them.

``pytest -s tests/pipeline/stages/test_caption_kills.py`` prints where the kills hit. The driver is this file:
``python test_caption_kills.py FOLDER OUT`` describes the shards of FOLDER.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from tests.helpers.stage_kills import list_markers, run_and_kill, run_to_end, short_folder

SHARDS, ROWS = 10, 50
FILES = ("download.tar", "download.parquet", "select.parquet")
NAMES = ("long", "short")
WEIGHTS = {"caption": 1.0, "long": 2.0, "short": 1.0}


def run_caption(folder: Path, out: Path) -> None:
    """Runs stage caption in a local Ray of one CPU."""
    from eval.captioning.config import CaptionConfig
    from pipeline.runtime.config import ClusterConfig
    from pipeline.runtime.ray_session import connect_ray
    from pipeline.runtime.shard_map import map_shards
    from pipeline.stages.caption import CaptionWorker
    from pipeline.store.artifact import Shard
    from tests.helpers.contexts import make_context

    connect_ray(ClusterConfig(cpus=1))
    shards = [Shard(number, {name: str(folder / str(number) / name) for name in FILES}) for number in range(SHARDS)]
    long, short = {"prompt": "describe the red house", "max_tokens": 8}, {"prompt": "caption a cat", "max_tokens": 3}
    config = CaptionConfig.model_validate({"prompts": {"long": long, "short": short}})
    arguments = {"model": str(folder / "model"), "config": config, "names": {"": NAMES}, "max_pixels": 1 << 20}
    map_shards(make_context(out, "caption", retries=0), CaptionWorker, arguments, shards)


@pytest.fixture
def folder() -> Iterator[Path]:
    with short_folder() as path:
        yield path


def write_shards(folder: Path) -> None:
    """Writes shards of images as the download stage does; every tenth row is not kept."""
    from dataprep.download.config import DownloadConfig
    from dataprep.download.shard import download_shard
    from dataprep.io.parquet import ROOT_KEY, write_table
    from tests.helpers.images import encoded, picture

    (folder / "images").mkdir()
    for number in range(SHARDS):
        names = [f"{number * ROWS + row}.png" for row in range(ROWS)]
        for row, name in enumerate(names):
            (folder / "images" / name).write_bytes(encoded(picture(number * ROWS + row, 32, 24)))
        table = pa.table({"url": names, "caption": [f"the caption of {name}" for name in names]})
        table = table.replace_schema_metadata({ROOT_KEY: str(folder / "images").encode()})
        place = folder / str(number)
        place.mkdir()
        write_table(table, place / "listing", "listing")
        download_shard(place / "listing", number, place, DownloadConfig(image_size=24))
        for kind in ("tar", "parquet"):
            (place / f"{number:05d}.{kind}").rename(place / f"download.{kind}")
        keys = [f"{number:05d}{row:04d}" for row in range(ROWS)]
        keep = [row % 10 != 3 for row in range(ROWS)]
        splits = pa.array(["train" if kept else None for kept in keep], pa.string())
        columns = {"key": keys, "keep": keep, "reason": pa.nulls(ROWS, pa.string()), "split": splits}
        write_table(pa.table(columns), place / "select.parquet", "selection")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_captions_survive_kills_and_are_mixed_by_the_loader(folder: Path, tmp_path: Path) -> None:
    from dataprep.io.parquet import read_table
    from dataprep.pack import pack_shard
    from dataprep.pack_config import PackConfig
    from tests.helpers.vision_language import save_llava
    from train.loader.loader import TRAIN, Loader
    from train.loader.mix_config import DataMix

    write_shards(folder)
    save_llava(folder / "model")
    whole = run_to_end(__file__, folder, tmp_path / "whole")
    finished: list[dict[Path, int]] = []  # after each kill, when each shard was written
    for delay in (0.05, 0.3):
        run_and_kill(__file__, folder, tmp_path / "out", random.Random(delay).randint(1, 3), delay)
        finished.append(read_times(tmp_path / "out"))
    first, second = (len(times) for times in finished)
    print(f"{SHARDS * ROWS} images in {SHARDS} shards, killed after {first} and after {second} shards")
    assert 0 < first < second < SHARDS
    assert run_to_end(__file__, folder, tmp_path / "out") == whole
    times = read_times(tmp_path / "out")
    assert len(times) == SHARDS and finished[0].items() <= finished[1].items() <= times.items()  # none written again
    paths = sorted((tmp_path / "out").rglob("*.parquet"))
    rows = [row for path in paths for row in read_table(path, "columns").to_pylist()]
    assert [row["key"] for row in rows] == [f"{shard:05d}{row:04d}" for shard in range(SHARDS) for row in range(ROWS)]
    described = [row for row in rows if row["long"] is not None]
    assert len(described) == SHARDS * ROWS * 9 // 10 and all(row["short"] for row in described)
    packs = []
    for number, path in enumerate(paths):
        pack = tmp_path / f"{number}.pack"
        shard = [folder / str(number) / name for name in FILES]
        config = PackConfig(resolutions=(8,), captions=WEIGHTS)
        pack_shard(shard[0], shard[1], shard[2], pack, config, captions_path=path)
        packs.append(str(pack))
    loader = Loader(packs, None, ("pixels_8",), TRAIN, 0, 45, mix=DataMix(captions={"": WEIGHTS}))
    wrote = {row["key"]: row | {"caption": own_caption(row["key"])} for row in described}
    seen: Counter[str] = Counter()
    for step in range(60):
        batch = loader.batch(step)
        for key, caption in zip(batch["key"], batch["caption"], strict=True):
            assert wrote[key]["long"] != wrote[key]["short"]  # an untrained model, but of other lengths
            seen[next(name for name in WEIGHTS if wrote[key][name] == caption)] += 1
    print(f"of {seen.total()} samples: {dict(seen)}")
    shares = {name: count / seen.total() for name, count in seen.items()}  # standard deviation below 1%
    assert shares == pytest.approx({name: weight / 4 for name, weight in WEIGHTS.items()}, abs=0.035)


def read_times(out: Path) -> dict[Path, int]:
    """Returns when each committed shard was, in nanoseconds."""
    return {marker: marker.stat().st_mtime_ns for marker in list_markers(out)}


def own_caption(key: str) -> str:
    return f"the caption of {int(key[:5]) * ROWS + int(key[5:])}.png"


if __name__ == "__main__":
    run_caption(Path(sys.argv[1]), Path(sys.argv[2]))
