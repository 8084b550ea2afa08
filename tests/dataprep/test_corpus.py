"""The embedded corpus through the whole preparation: planted trouble meets the filter that is there for it."""

from __future__ import annotations

import pytest
from select_fakes import write_shards

from dataprep.annotate import AnnotateConfig, annotate_shard
from dataprep.download import DownloadConfig, download_shard
from dataprep.fetch import FetchConfig
from dataprep.quality import filter_quality
from dataprep.rules import SelectConfig
from dataprep.scenes import HOST, ScenesConfig, serve
from dataprep.schema import read_table
from dataprep.select import select
from dataprep.sources import ListingConfig, write_listing

SCENES = ScenesConfig(count=400, image_size=128)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_listing(ListingConfig(scenes=SCENES, rows_per_shard=200), 5, folder)
    config = DownloadConfig(fetch=FetchConfig(retries=1), image_size=128)
    downloads, annotations = [], []
    with serve(SCENES, 5) as address:
        for index in range(2):
            (folder / "download").mkdir(exist_ok=True)
            download_shard(folder / f"{index:05d}.parquet", index, folder / "download", config, {HOST: address})
    for index in range(2):
        tar, table = (folder / "download" / f"{index:05d}.{extension}" for extension in ("tar", "parquet"))
        annotate_shard(tar, table, folder / f"annotated-{index}.parquet", AnnotateConfig())
        downloads.append(read_table(table, "download"))
        annotations.append(read_table(folder / f"annotated-{index}.parquet", "annotations"))
    return downloads, annotations


def test_planted_trouble_is_caught_and_clean_rows_stay(corpus, tmp_path):
    downloads, annotations = corpus
    selection = []
    select(write_shards(tmp_path, annotations), SelectConfig(), lambda place, table: selection.append(table))
    quality = filter_quality(downloads, selection)
    for kind, judged in quality["troubles"].items():
        if kind != "wrong_caption":  # needs CLIP
            assert judged["dropped"] == judged["planted"], (kind, judged)
    assert quality["clean"]["dropped"] <= 0.01 * quality["clean"]["rows"]


def test_captions_are_told_apart_by_language(corpus):
    downloads, annotations = corpus
    for download, annotated in zip(downloads, annotations, strict=True):
        captions, languages = download["caption"].to_pylist(), annotated["language"].to_pylist()
        spoken = [(caption, language) for caption, language in zip(captions, languages, strict=True) if "圆" in caption]
        assert all(language == "zh" for _, language in spoken)
    flat = [language for annotated in annotations for language in annotated["language"].to_pylist()]
    assert flat.count("en") + flat.count("zh") > 0.95 * len(flat)
