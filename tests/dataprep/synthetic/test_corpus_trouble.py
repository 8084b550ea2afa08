"""The embedded corpus through the whole preparation: planted trouble meets its filter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dataprep.annotate import annotate_shard
from dataprep.annotate_config import AnnotateConfig
from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard
from dataprep.filters.config import SelectConfig
from dataprep.filters.evaluation import evaluate_filters
from dataprep.filters.select import select_pairs
from dataprep.filters.steps import LocalRunner
from dataprep.io.keys import shard_name
from dataprep.io.parquet import read_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.writer import write_listing
from dataprep.synthetic.config import ScenesConfig
from dataprep.synthetic.corpus import HOST
from dataprep.synthetic.server import serve_scenes
from tests.helpers.selection import write_shards

SCENES = ScenesConfig(count=400, image_size=128)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("corpus")
    write_listing(ListingConfig(scenes=SCENES, rows_per_shard=200), 5, folder)
    config = DownloadConfig(fetch=FetchConfig(retries=1), image_size=128)
    downloads, annotations = [], []
    with serve_scenes(SCENES, 5) as address:
        for index in range(2):
            (folder / "download").mkdir(exist_ok=True)
            download_shard(folder / shard_name(index, "parquet"), index, folder / "download", config, {HOST: address})
    for index in range(2):
        tar, table = (folder / "download" / shard_name(index, extension) for extension in ("tar", "parquet"))
        annotate_shard(tar, table, folder / f"annotated-{index}.parquet", AnnotateConfig())
        downloads.append(read_table(table, "download"))
        annotations.append(read_table(folder / f"annotated-{index}.parquet", "annotations"))
    return downloads, annotations


def test_planted_trouble_is_caught_and_clean_rows_stay(corpus: Any, tmp_path: Path) -> None:
    downloads, annotations = corpus
    selection = select_pairs(write_shards(tmp_path, annotations), SelectConfig(), LocalRunner(tmp_path))
    tables = [read_table(path, "selection") for path in selection.tables.values()]
    quality = evaluate_filters(downloads, tables)
    assert quality is not None
    for kind, judged in quality["troubles"].items():
        if kind != "wrong_caption":  # needs CLIP
            assert judged["dropped"] == judged["planted"], (kind, judged)
    assert quality["clean"]["dropped"] <= 0.01 * quality["clean"]["rows"]


def test_caption_languages_are_classified(corpus: Any) -> None:
    downloads, annotations = corpus
    for download, annotated in zip(downloads, annotations, strict=True):
        captions, languages = download["caption"].to_pylist(), annotated["language"].to_pylist()
        spoken = [(caption, language) for caption, language in zip(captions, languages, strict=True) if "圆" in caption]
        assert all(language == "zh" for _, language in spoken)
    flat = [language for annotated in annotations for language in annotated["language"].to_pylist()]
    assert flat.count("en") + flat.count("zh") > 0.95 * len(flat)
