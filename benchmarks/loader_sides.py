"""The loaders of `benchmarks.loader`: each writes the same samples in its own format, and iterates over them.

A side is a class with ``write(samples, folder)``. An instance reads a folder: ``epoch()`` is an iterator of batches
(pixels uint8 (B, H, W, 3), text float32 (B, L, D), mask bool (B, L)), and ``middle(step)`` returns the batch of that
step as a resume would. Peers decode JPEG with Pillow, their default; "cv2" in a name means that they use our decoder.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from dataprep.io.model_imports import declare_torchvision_operators
from dataprep.io.pack_format import ENCODING_KEY
from dataprep.pack import write_pack
from dataprep.pack_config import PackConfig
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import SCHEMA, write_embeddings
from dataprep.text.embedding_codec import encode_embedding
from train.loader.config import LoaderConfig
from train.loader.loader import Loader

BATCH, SIZE = 64, 64
SHARD_ROWS = 1024
WINDOW_MB = 8
Triple = tuple[Tensor, Tensor, Tensor]


@dataclass
class Sample:
    """A sample that every side stores."""

    key: str
    caption: str
    jpeg: bytes
    text_LD: np.ndarray  # float16


def collate_batch(images: list[np.ndarray], texts: list[np.ndarray]) -> Triple:
    """Stacks images and pads texts to the longest of the batch, as a careful user of the peers would."""
    longest = max(len(text) for text in texts)
    text_BLD = np.zeros((len(texts), longest, texts[0].shape[1]), np.float32)
    mask_BL = np.zeros((len(texts), longest), bool)
    for row, text in enumerate(texts):
        text_BLD[row, : len(text)], mask_BL[row, : len(text)] = text, True
    return torch.from_numpy(np.stack(images)), torch.from_numpy(text_BLD), torch.from_numpy(mask_BL)


def decode_with_pillow(data: bytes) -> np.ndarray:
    """Decodes a JPEG to uint8 RGB (H, W, 3)."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decode_with_opencv(data: bytes) -> np.ndarray:
    """Decodes a JPEG to uint8 RGB (H, W, 3), as our loader does."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    assert image is not None
    return image


# ---------------------------------------------------------------------------------------------- ours


class OursJpeg:
    """Our pack and embedding shards: the same JPEG bytes, float16."""

    encoding = "jpeg"
    codec: Literal["float16", "int8"] = "float16"
    compression: Literal["none", "zstd"] = "none"
    size = SIZE
    crop: int | None = None

    def __init__(self, folder: Path, workers: int = 0) -> None:
        # Several windows per epoch, so that row groups are read, shuffled and evicted all the time.
        config = LoaderConfig(window_mb=WINDOW_MB)
        packs = sorted(str(path) for path in folder.glob("p*"))
        embeds = sorted(str(path) for path in folder.glob("e*"))
        columns = (f"pixels_{self.size}",)
        self.loader = Loader(packs, embeds, columns, "train", 0, BATCH, self.crop, config)

    def epoch(self) -> Iterator[Triple]:
        for step in range(len(self.loader) // BATCH):
            yield self.middle(step)

    def middle(self, step: int) -> Triple:
        batch = self.loader.batch(step)
        return batch[f"pixels_{self.size}"], batch["text_BLD"], batch["text_mask_BL"]

    @classmethod
    def write(cls, samples: list[Sample], folder: Path) -> None:
        name, raw = f"pixels_{cls.size}", cls.encoding == "raw"
        pack_config = PackConfig(resolutions=(cls.size,), raw_up_to=cls.size if raw else 0, encoding="jpeg")
        pixels = pa.field(name, pa.binary(), metadata={ENCODING_KEY: cls.encoding.encode()})
        texts = [pa.field(text, pa.string()) for text in ("key", "caption", "split")]
        schema = pa.schema([*texts, pa.field("captions", pa.list_(pa.string())), pixels])
        embed_config = EmbedConfig(codec=cls.codec, compression=cls.compression)
        for number, start in enumerate(range(0, len(samples), SHARD_ROWS)):
            part = samples[start : start + SHARD_ROWS]
            images = [decode_with_opencv(sample.jpeg).tobytes() if raw else sample.jpeg for sample in part]
            columns: dict[str, list[Any]] = {"key": [sample.key for sample in part]}
            columns |= {"caption": [sample.caption for sample in part], "split": ["train"] * len(part)}
            columns |= {"captions": [[sample.caption] for sample in part], name: images}
            table = pa.table(columns, schema=schema)
            write_pack(table, folder / f"p{number:05d}.parquet", pack_config)
            rows = []
            for sample in part:
                data, scale = encode_embedding(sample.text_LD, cls.codec)
                row = {"key": sample.key, "caption": sample.caption, "length": len(sample.text_LD)}
                row |= {"dim": sample.text_LD.shape[1], "codec": cls.codec, "embedding": data, "scale": scale}
                rows.append(row)
            sizes = [min(128, len(part) - at) for at in range(0, len(part), 128)]
            table = pa.Table.from_pylist(rows, schema=SCHEMA)
            write_embeddings(table, folder / f"e{number:05d}.parquet", embed_config, sizes)


class OursRaw(OursJpeg):
    """Raw pixels, float16."""

    encoding = "raw"


class OursRawInt8(OursJpeg):
    """Raw pixels, int8."""

    encoding = "raw"
    codec = "int8"


class OursRawZstd(OursRawInt8):
    """Raw pixels, int8 compressed with zstd: the smallest raw format."""

    compression = "zstd"


class OursJpeg256(OursJpeg):
    """JPEGs of 256 pixels a side, int8."""

    codec = "int8"
    size = 256


class OursCrop(OursJpeg256):
    """Crops of 256 pixels from JPEGs of 1024."""

    size = 1024
    crop = 256


# ---------------------------------------------------------------------------------------------- peers


class Memory:
    """No loader: tensors in memory, text padded to the longest of all, rows taken by index."""

    def __init__(self, folder: Path, workers: int = 0) -> None:
        data = torch.load(folder / "all.pt")
        self.pixels, self.text, self.lengths = data["pixels"], data["text"], data["lengths"]
        self.order = torch.randperm(len(self.pixels), generator=torch.Generator().manual_seed(0))

    def epoch(self) -> Iterator[Triple]:
        for step in range(len(self.order) // BATCH):
            yield self.middle(step)

    def middle(self, step: int) -> Triple:
        rows = self.order[step * BATCH : (step + 1) * BATCH]
        lengths = self.lengths[rows]
        longest = int(lengths.max())
        return self.pixels[rows], self.text[:, :longest][rows], torch.arange(longest)[None] < lengths[:, None]

    @staticmethod
    def write(samples: list[Sample], folder: Path) -> None:
        pixels, text, mask = collate_batch([decode_with_opencv(s.jpeg) for s in samples], [s.text_LD for s in samples])
        torch.save({"pixels": pixels, "text": text, "lengths": mask.sum(1)}, folder / "all.pt")


class WebDataset:
    """Tars with .jpg, .txt and .npy; shuffles the shards and a buffer of 1,000 samples."""

    decode = "rgb8"

    def __init__(self, folder: Path, workers: int = 0) -> None:
        import webdataset

        tars = sorted(str(path) for path in folder.glob("*.tar"))
        data = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False).shuffle(1000)
        data = data.decode(self.decode or webdataset.handle_extension("jpg", decode_with_opencv))
        pairs = data.to_tuple("jpg", "npy").batched(
            BATCH, collation_fn=lambda rows: collate_batch(*map(list, zip(*rows, strict=True)))
        )
        self.data = webdataset.WebLoader(pairs, batch_size=None, num_workers=workers)

    def epoch(self) -> Iterator[Triple]:
        return iter(self.data)

    def middle(self, step: int) -> Triple:
        for at, batch in enumerate(self.data):  # it cannot seek
            if at == step:
                return batch
        raise AssertionError

    @staticmethod
    def write(samples: list[Sample], folder: Path) -> None:
        import webdataset

        with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=SHARD_ROWS, verbose=0) as sink:
            for s in samples:
                sink.write({"__key__": s.key, "jpg": s.jpeg, "txt": s.caption, "npy": s.text_LD})


class WebDatasetCv2(WebDataset):
    """The same, with our decoder."""

    decode = ""


class Mds:
    """mosaicml-streaming from a local folder, with its own shuffle and resumption."""

    def __init__(self, folder: Path, workers: int = 0) -> None:
        from streaming import StreamingDataLoader, StreamingDataset
        from streaming.base.util import clean_stale_shared_memory

        clean_stale_shared_memory()
        self.data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
        self.loader = StreamingDataLoader(self.data, batch_size=BATCH, num_workers=workers, collate_fn=self.collate)

    @staticmethod
    def collate(rows: list[dict[str, Any]]) -> Triple:
        return collate_batch([np.asarray(row["image"].convert("RGB")) for row in rows], [row["text"] for row in rows])

    def epoch(self) -> Iterator[Triple]:
        return iter(self.loader)

    def middle(self, step: int) -> Triple:
        state = self.data.state_dict(step * BATCH, False)
        self.loader.load_state_dict(state)
        return next(iter(self.loader))

    image = "jpeg"

    @classmethod
    def write(cls, samples: list[Sample], folder: Path) -> None:
        from streaming import MDSWriter

        width = samples[0].text_LD.shape[1]
        columns = {"key": "str", "caption": "str", "image": cls.image, "text": "ndarray:float16"}
        with MDSWriter(out=str(folder), columns=columns, size_limit=1 << 24) as sink:
            for s in samples:
                assert s.text_LD.shape[1] == width
                image = s.jpeg if cls.image == "bytes" else Image.open(io.BytesIO(s.jpeg))
                sink.write({"key": s.key, "caption": s.caption, "image": image, "text": s.text_LD})


class MdsCv2(Mds):
    """The same, with our decoder."""

    image = "bytes"

    @staticmethod
    def collate(rows: list[dict[str, Any]]) -> Triple:
        return collate_batch([decode_with_opencv(row["image"]) for row in rows], [row["text"] for row in rows])


class HuggingFace:
    """A datasets.Dataset of Arrow files shuffled by indices: an Image column, and the embedding as bytes."""

    def __init__(self, folder: Path, workers: int = 0) -> None:
        import datasets
        from torch.utils.data import DataLoader

        self.dim = json.loads((folder / "dim.json").read_text())
        self.data = datasets.load_from_disk(str(folder / "data")).shuffle(seed=0)
        self.loader = DataLoader(self.data, BATCH, num_workers=workers, collate_fn=self.collate)

    def collate(self, rows: list[dict[str, Any]]) -> Triple:
        texts = [np.frombuffer(row["text"], np.float16).reshape(-1, self.dim) for row in rows]
        return collate_batch([self.pixels(row["image"]) for row in rows], texts)

    @staticmethod
    def pixels(image: Any) -> np.ndarray:
        return np.asarray(image.convert("RGB"))

    def epoch(self) -> Iterator[Triple]:
        return iter(self.loader)

    def middle(self, step: int) -> Triple:
        return self.collate([self.data[at] for at in range(step * BATCH, (step + 1) * BATCH)])

    as_image = True

    @classmethod
    def write(cls, samples: list[Sample], folder: Path) -> None:
        import datasets

        image = datasets.Image() if cls.as_image else datasets.Value("binary")
        features = {"key": datasets.Value("string"), "caption": datasets.Value("string")}
        features |= {"image": image, "text": datasets.Value("binary")}
        columns: dict[str, list[Any]] = {"key": [s.key for s in samples], "caption": [s.caption for s in samples]}
        jpegs: list[Any] = [{"bytes": s.jpeg, "path": None} if cls.as_image else s.jpeg for s in samples]
        columns |= {"image": jpegs, "text": [s.text_LD.tobytes() for s in samples]}
        datasets.disable_progress_bars()
        made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        made.save_to_disk(str(folder / "data"), num_shards=-(-len(samples) // SHARD_ROWS))
        (folder / "dim.json").write_text(json.dumps(samples[0].text_LD.shape[1]))


class HuggingFaceCv2(HuggingFace):
    """The same, with our decoder."""

    as_image = False

    @staticmethod
    def pixels(image: Any) -> np.ndarray:
        return decode_with_opencv(image)


SIDES: dict[str, Any] = {
    "ours, JPEG": OursJpeg,
    "ours, raw float16": OursRaw,
    "ours, raw int8": OursRawInt8,
    "ours, raw int8 zstd": OursRawZstd,
    "memory": Memory,
    "webdataset": WebDataset,
    "webdataset, cv2": WebDatasetCv2,
    "mosaicml-streaming": Mds,
    "mosaicml-streaming, cv2": MdsCv2,
    "datasets": HuggingFace,
    "datasets, cv2": HuggingFaceCv2,
}


def import_peers() -> None:
    """Imports the peers before anything is measured."""
    declare_torchvision_operators()  # mosaicml-streaming imports torchvision
    import datasets  # noqa: F401
    import streaming  # noqa: F401
    import webdataset  # noqa: F401


PEERS = tuple(name for name in SIDES if not name.startswith(("ours", "memory")))
