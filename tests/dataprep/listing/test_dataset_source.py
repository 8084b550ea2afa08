"""Datasets of Hugging Face: folders as the hub, `datasets` and people make them; what `datasets` reads is the truth."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dataprep.download.config import DownloadConfig
from dataprep.download.shard import download_shard
from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.parquet import ROOT_KEY, read_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.sources import check_source, find_source_files, list_rows
from dataprep.listing.writer import write_listing
from tests.helpers.dataset_hub import LARGE, DatasetHub, serve_dataset_hub
from tests.helpers.hub import TOKEN
from tests.helpers.images import encoded, picture
from tests.helpers.lists import list_pairs
from tests.helpers.tars import write_tar

IMAGE = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    with serve_dataset_hub(monkeypatch) as hub:
        yield hub


def make_dataset(first: int, count: int) -> datasets.Dataset:
    numbers = range(first, first + count)
    columns = {
        "image": [Image.fromarray(picture(number)) for number in numbers],
        "text": [f"caption {number}" for number in numbers],
    }
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(columns, features=features)


def write_parquet(path: Path, first: int, count: int) -> Path:
    cells = [{"bytes": encoded(picture(number)), "path": None} for number in range(first, first + count)]
    texts = [f"caption {number}" for number in range(first, first + count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(cells, IMAGE), "text": texts}), path)
    return path


def dataset_config(path: object, **fields: Any) -> ListingConfig:
    return ListingConfig(source="dataset", path=str(path), **fields)


def captions(config: ListingConfig) -> list[str]:
    return [caption for _, caption in list_pairs(config)]


def download(config: ListingConfig, folder: Path) -> list[dict[str, Any]]:
    """Returns the rows of listing and download."""
    folder.mkdir()
    counters = write_listing(config, 0, folder)
    rows = []
    for shard in range(counters["shards"]):
        download_shard(folder / f"{shard:05d}.parquet", shard, folder, DownloadConfig(image_size=32))
        rows += read_table(folder / f"{shard:05d}.parquet", "download").to_pylist()
    return rows


def test_a_saved_dataset_is_read_in_its_order(tmp_path: Path) -> None:
    whole = datasets.DatasetDict({"train": make_dataset(0, 7), "test": make_dataset(7, 2)})
    whole.save_to_disk(tmp_path / "set", num_shards={"train": 2, "test": 1})
    config = dataset_config(tmp_path / "set", rows_per_shard=4)
    truth = datasets.load_from_disk(str(tmp_path / "set"))
    assert captions(config) == truth["train"]["text"][:] == [f"caption {number}" for number in range(7)]
    assert captions(dataset_config(tmp_path / "set", split="test")) == truth["test"]["text"][:]
    rows = download(config, tmp_path / "out")
    assert [row["status"] for row in rows] == ["success"] * 7
    images = [encoded(picture(number)) for number in range(7)]
    assert [row["original_bytes"] for row in rows] == [len(image) for image in images]
    assert rows[5]["url"] == "data-00001-of-00002.arrow#image:1"


def test_a_dataset_saved_alone_is_its_train_split(tmp_path: Path) -> None:
    make_dataset(3, 2).save_to_disk(tmp_path / "set")
    assert captions(dataset_config(tmp_path / "set")) == ["caption 3", "caption 4"]
    (tmp_path / "set" / "state.json").write_text("{}")
    with pytest.raises(UserError, match=r"state.json: not readable .*; save the dataset again"):
        captions(dataset_config(tmp_path / "set"))


def test_arrows_file_format_is_read_too(tmp_path: Path) -> None:
    table = pa.table({"url": ["http://a/1", "http://a/2"], "caption": ["one", "two"]})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1)
    assert list_pairs(ListingConfig(source="table", path=str(tmp_path / "a.arrow"))) == [
        ("http://a/1", "one"),
        ("http://a/2", "two"),
    ]
    (tmp_path / "a.arrow").write_bytes(b"no table")
    with pytest.raises(UserError, match=r"a.arrow: not readable as .arrow"):
        check_source(ListingConfig(source="table", path=str(tmp_path / "a.arrow")))


LAYOUTS: dict[str, dict[str, tuple[int, int]]] = {  # file -> first caption and number
    "shards": {"data/train-00000-of-00002.parquet": (0, 2), "data/train-00001-of-00002.parquet": (2, 2)}
    | {"data/validation-00000-of-00001.parquet": (4, 3), "notes/extra.parquet": (90, 1)},
    "folders": {"training/a.parquet": (0, 2), "training/b.parquet": (2, 2), "valid/a.parquet": (4, 3)},
    "names": {"my-train-1.parquet": (0, 2), "my-train-2.parquet": (2, 2), "dev.parquet": (4, 3)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_splits_by_name_are_those_of_datasets(layout: str, tmp_path: Path) -> None:
    for name, span in LAYOUTS[layout].items():
        write_parquet(tmp_path / "set" / name, *span)
    truth = datasets.load_dataset(str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "validation"):
        assert captions(dataset_config(tmp_path / "set", split=split)) == truth[split]["text"][:], split
    assert len(captions(dataset_config(tmp_path / "set"))) == 4
    with pytest.raises(UserError, match=r"listing.split test: .* only of train, validation; set split"):
        captions(dataset_config(tmp_path / "set", split="test"))


def test_without_names_everything_is_train(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "part.parquet", 0, 2)
    (tmp_path / "set" / "README.md").write_text("no metadata")
    assert len(captions(dataset_config(tmp_path / "set"))) == 2


README = """---
license: mit
configs:
- config_name: small
  data_files: s/*.parquet
- config_name: large
  default: true
  data_files:
  - split: train
    path: [a/*.parquet, "b/**"]
  - split: held_out
    path: c/*
---
# A set
"""


def test_what_the_readme_says_counts(tmp_path: Path) -> None:
    for name, span in {"s/1": (0, 1), "a/1": (1, 2), "b/x/1": (3, 2), "c/1": (5, 1), "a/y/1": (9, 1)}.items():
        write_parquet(tmp_path / "set" / f"{name}.parquet", *span)
    (tmp_path / "set" / "README.md").write_text(README)
    for subset, split in (("small", "train"), ("large", "train"), ("large", "held_out")):
        path, cache = str(tmp_path / "set"), str(tmp_path / "cache")
        truth = datasets.load_dataset(path, subset, split=split, cache_dir=cache)
        assert captions(dataset_config(path, subset=subset, split=split)) == truth["text"][:], (subset, split)
    assert captions(dataset_config(tmp_path / "set")) == [f"caption {number}" for number in (1, 2, 3, 4)]
    with pytest.raises(UserError, match=r"listing.subset tiny: .* only small, large; set subset"):
        captions(dataset_config(tmp_path / "set", subset="tiny"))
    (tmp_path / "set" / "README.md").write_text("---\n: : [\n---\n")
    with pytest.raises(UserError, match=r"metadata of README.md is not YAML"):
        captions(dataset_config(tmp_path / "set"))


def test_a_subset_needs_a_readme(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set" / "a.parquet", 0, 1)
    with pytest.raises(UserError, match=r"listing.subset small: .* has no README.md that describes it"):
        captions(dataset_config(tmp_path / "set", subset="small"))


@pytest.mark.parametrize("table", ["metadata.jsonl", "metadata.csv"])
def test_a_folder_of_images_with_metadata(table: str, tmp_path: Path) -> None:
    for split, numbers in (("train", (0, 1, 2)), ("test", (3,))):
        folder = tmp_path / "set" / split
        folder.mkdir(parents=True)
        for number in numbers:
            (folder / f"{number}.png").write_bytes(encoded(picture(number)))
        rows = [{"file_name": f"{number}.png", "text": f"caption {number}"} for number in numbers]
        lines = [json.dumps(row) for row in rows]
        if table.endswith("csv"):
            lines = ["file_name,text", *(f"{row['file_name']},{row['text']}" for row in rows)]
        (folder / table).write_text("\n".join(lines) + "\n")
    truth = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"))
    config = dataset_config(tmp_path / "set")
    assert captions(config) == truth["train"]["text"][:]
    assert captions(dataset_config(tmp_path / "set", split="test")) == ["caption 3"]
    assert len(find_source_files(config)) == 4
    rows = download(config, tmp_path / "out")
    assert [(row["url"], row["status"]) for row in rows] == [(f"{number}.png", "success") for number in (0, 1, 2)]


def test_splits_in_one_folder_of_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for name in ("train-1", "test-1"):
        (tmp_path / "set" / f"{name}.png").write_bytes(encoded(picture()))
        (tmp_path / "set" / f"{name}.txt").write_text("a house")
    with pytest.raises(UserError, match=r"listing.split train: the images of test, train .* give each split a folder"):
        captions(dataset_config(tmp_path / "set"))


def test_tars_of_a_dataset(tmp_path: Path) -> None:
    files = [("0.png", encoded(picture())), ("0.txt", b"a house")]
    write_tar(tmp_path / "set" / "train" / "0.tar", files)
    write_tar(tmp_path / "set" / "test" / "0.tar", files * 2)
    assert captions(dataset_config(tmp_path / "set")) == ["a house"]
    config = dataset_config(tmp_path / "set", image_member="jpg")
    with pytest.raises(UserError, match="none of the 1 rows read can be used"):
        check_source(config)


def test_a_dataset_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"listing.path .*none: no such dataset folder; check the path"):
        captions(dataset_config(tmp_path / "none"))
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "script.py").touch()
    with pytest.raises(UserError, match=r"the dataset holds no .parquet .* and no images"):
        captions(dataset_config(tmp_path / "set"))


# ---------------------------------------------------------------------------------------------- on a hub


def put_parquet(hub: DatasetHub, name: str, tmp_path: Path, **spans: tuple[int, int]) -> None:
    files = hub.files.setdefault(name, {"README.md": b"# A set"})
    for split, span in spans.items():
        path = write_parquet(tmp_path / "hub" / f"{split}.parquet", *span)
        files[f"data/{split}-00000-of-00001.parquet"] = path.read_bytes()


def test_a_dataset_on_a_hub_needs_no_download_of_its_own(hub: DatasetHub, tmp_path: Path) -> None:
    put_parquet(hub, "me/birds", tmp_path, train=(0, 5), test=(5, 2))
    config = dataset_config("hf://datasets/me/birds", rows_per_shard=3)
    assert find_source_files(config) == ["hf://datasets/me/birds/data/train-00000-of-00001.parquet"]
    rows = download(config, tmp_path / "out")
    assert [row["status"] for row in rows] == ["success"] * 5
    assert [row["original_bytes"] for row in rows] == [len(encoded(picture(number))) for number in range(5)]
    whole = hub.files["me/birds"]["data/train-00000-of-00001.parquet"]
    assert len(whole) >= LARGE and not any("test" in path for path in hub.read)
    assert rows[0]["file_sha256"] == storage.sha256_file(str(tmp_path / "hub" / "train.parquet"))[0]


def test_images_come_from_the_commit_that_was_listed(hub: DatasetHub, tmp_path: Path) -> None:
    put_parquet(hub, "me/birds", tmp_path, train=(0, 2))
    commit = hub.commit("me/birds")
    (table,) = list_rows(dataset_config("hf://datasets/me/birds"), 0)
    assert table.schema.metadata[ROOT_KEY].decode() == f"hf://datasets/me/birds@{commit}/data"
    (given,) = list_rows(dataset_config(f"hf://datasets/me/birds@{commit}"), 0)
    assert given.schema.metadata[ROOT_KEY] == table.schema.metadata[ROOT_KEY]


def test_the_hash_of_a_large_file_is_the_hubs(hub: DatasetHub, tmp_path: Path) -> None:
    put_parquet(hub, "me/birds", tmp_path, train=(0, 5))
    path = "hf://datasets/me/birds/data/train-00000-of-00001.parquet"
    assert storage.sha256_file(path) == storage.sha256_file(str(tmp_path / "hub" / "train.parquet"))
    assert hub.read == []
    before = storage.identity(path)["tag"]
    assert storage.sha256_file("hf://datasets/me/birds/README.md")[1] == len("# A set") and hub.read
    hub.files["me/birds"]["data/train-00000-of-00001.parquet"] += b"x"
    fs, _ = storage.filesystem(path)
    fs.invalidate_cache()
    assert storage.identity(path)["tag"] != before != ""


def test_a_dataset_that_asks_for_consent(hub: DatasetHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_parquet(hub, "me/birds", tmp_path, train=(0, 2))
    hub.gated.add("me/birds")
    config = dataset_config("hf://datasets/me/birds")
    with pytest.raises(UserError, match=r"consent needs yours, on its page, and your token in HF_TOKEN"):
        check_source(config)
    with pytest.raises(UserError, match=r"no such dataset folder; check the name"):
        check_source(dataset_config("hf://datasets/me/fish"))
    with pytest.raises(UserError, match=r"listing.path hf://datasets/me/fish: .*; check the name"):
        list(list_rows(dataset_config("hf://datasets/me/fish"), 0))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert set(check_source(config)) == {"url", "caption", "image_path", "file_sha256"}


def test_a_public_list_by_its_name_is_read_from_the_hub(hub: DatasetHub, tmp_path: Path) -> None:
    table = pa.table({"url": ["http://a/1"], "caption": ["one"], "punsafe": [0.1]})
    pq.write_table(table, tmp_path / "part.parquet")
    name = "relaion2B-en-research-safe"
    hub.files[f"laion/{name}"] = {"part-00000.parquet": (tmp_path / "part.parquet").read_bytes()}
    config = ListingConfig(source="public", path=name)
    (row,) = next(list_rows(config, 0)).to_pylist()
    assert (row["url"], row["caption"], row["listed_unsafe"]) == ("http://a/1", "one", 0.1)
