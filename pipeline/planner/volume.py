"""What a run stores: pictures, training pixels, embeddings in every codec, checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from dataprep.codec import CODECS
from pipeline.config import CascadeStageConfig, RunConfig
from pipeline.planner.rates import Rates

COMPRESSIONS = ("none", "zstd")


@dataclass(frozen=True)
class Volume:
    """One artifact, or one column of it. What the config does not choose has ``chosen`` False and is not in the sum."""

    name: str
    rows: float
    bytes: float
    chosen: bool = True


def volumes(config: RunConfig, rates: Rates, width: int, clip_width: int, parameters: dict[str, int]) -> list[Volume]:
    """Of every artifact; the widths are the text encoder's and CLIP's, ``parameters`` each cascade stage's."""
    scores = 8.0 + (2 * clip_width if config.score.embeddings else 0)
    found = [
        Volume("download: tars and tables", rates.pictures, rates.pictures * rates.download_bytes),
        Volume("annotate, score, select", rates.urls, rates.urls * (rates.pack_row_bytes + 30 + scores)),
    ]
    found += [
        Volume(f"pack: {size} px, {config.pack.stored_in(size)}", rates.pairs, rates.pairs * per_row)
        for size, per_row in rates.pixel_bytes.items()
    ]
    found.append(Volume("pack: keys and captions", rates.pairs, rates.pairs * rates.pack_row_bytes))
    captions = rates.pairs * (1 + len(config.pack.captions))
    for codec in CODECS:
        for compression in COMPRESSIONS:
            size = rates.embedding_bytes(width, codec, compression == "zstd") * captions
            chosen = (codec, compression) == (config.embed.codec, config.embed.compression)
            found.append(Volume(f"embed: {codec}, {compression}", captions, size, chosen))
    for name, stage in config.train.items():
        kept = stage.keep_last + (stage.steps // stage.keep_every if stage.keep_every else 0)
        size = parameters[name] * (kept * checkpoint_bytes(stage) + 4)
        found.append(Volume(f"train.{name}: {kept} checkpoints, weights", parameters[name], size))
    return found


def checkpoint_bytes(stage: CascadeStageConfig) -> float:
    """Bytes a parameter of a checkpoint: weight, average and moments in fp32."""
    return 8.0 if stage.optimizer == "adafactor" else 16.0


def stored(found: list[Volume]) -> float:
    """Bytes of all that the config chooses."""
    return sum(volume.bytes for volume in found if volume.chosen)
