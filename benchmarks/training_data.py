"""Images and captions as the files that the training loader reads: a pack, its embeddings, and the index of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataprep.io.pack_format import ENCODING_KEY, pixels_column
from dataprep.io.parquet import write_table
from dataprep.text.config import EmbedConfig
from dataprep.text.embed import embed_shard
from dataprep.text.encoder import TextEncoder
from train.loader.loader import TRAIN
from train.loader.shard_index import index_shards


def write_training_data(
    folder: Path,
    images: Sequence[np.ndarray],
    captions: Sequence[str],
    encoder: TextEncoder,
    splits: Sequence[str] | None = None,
) -> str:
    """Packs images (uint8 RGB, squares of one side) and embeds captions in ``folder``; returns the path of the index.

    ``splits``: the split of each image, "train" or "validation"; None: all "train".
    """
    column, pack, embed = pixels_column(images[0].shape[0]), folder / "pack.parquet", folder / "embed.parquet"
    columns = {
        "key": [f"{number:06d}" for number in range(len(images))],
        "caption": list(captions),
        "split": list(splits or [TRAIN] * len(images)),
        "captions": [[caption] for caption in captions],
        column: [image.tobytes() for image in images],
    }
    fields = [pa.field(name, pa.string()) for name in ("key", "caption", "split")]
    fields.append(pa.field("captions", pa.list_(pa.string())))
    fields.append(pa.field(column, pa.binary(), metadata={ENCODING_KEY: b"raw"}))
    write_table(pa.table(columns, schema=pa.schema(fields)), pack, "pack", [len(images)], use_dictionary=False)
    embed_shard(pack, embed, encoder, EmbedConfig())
    index = folder / "index.parquet"
    index_shards([str(pack)], [str(embed)], (column,)).write(str(index))
    return str(index)
