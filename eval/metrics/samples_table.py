"""The table of generated samples: its schema, and one reader for all that judge, compare or show samples."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from dataprep.io.parquet import read_table, write_table
from dataprep.synthetic.grammar import Claim

Role = Literal["show", "evaluate"]
SHOW: Role = "show"
EVALUATE: Role = "evaluate"
ROLES = (SHOW, EVALUATE)
SampleKey = tuple[str, int, int]  # prompt, seed, index
SCHEMA = pa.schema(
    {
        "role": pa.string(),  # "show": every stage of the cascade; "evaluate": the judged stage alone
        "prompt": pa.string(),
        "split": pa.string(),  # "seen", "heldout", "user", or a category of the prompt file
        "language": pa.string(),
        "claim": pa.string(),  # JSON of what the prompt claims; null for a prompt outside of the grammar
        "checks": pa.string(),  # JSON {attribute: correct} by the composition checker; null without a claim
        "seed": pa.int64(),
        "index": pa.int32(),  # number of the candidate among those of its prompt
        "chosen": pa.bool_(),  # the best of the candidates by CLIP
        "stage": pa.string(),
        "size": pa.int32(),
        "png": pa.binary(),
        "clip_score": pa.float32(),
    }
)


@dataclass(frozen=True)
class JudgedSample:
    """One row of the table: an image of one stage, how it was made, and what CLIP and the checker say of it."""

    role: Role
    prompt: str
    split: str
    language: str
    claim: Claim | None
    checks: dict[str, bool] | None  # attribute -> correct, and "all"
    seed: int
    index: int
    chosen: bool
    stage: str
    size: int  # pixels, of its width
    clip_score: float
    png: bytes | None = None  # None if the table was read without images

    @property
    def key(self) -> SampleKey:
        """Identifies the sample among those of its role."""
        return self.prompt, self.seed, self.index

    @property
    def wrong(self) -> list[str]:
        """The attributes that the image does not show as the prompt says."""
        return [name for name, correct in (self.checks or {}).items() if not correct and name != "all"]

    def pixels(self) -> np.ndarray:
        """Decodes the image: uint8 RGB (H, W, 3). Raises ValueError if the table was read without images."""
        if self.png is None:
            raise ValueError(f"sample {self.key} was read without its image; read the table with images=True")
        return np.asarray(Image.open(io.BytesIO(self.png)).convert("RGB"))


def read_samples(paths: Iterable[str], role: Role | None = None, images: bool = False) -> Iterator[JudgedSample]:
    """Yields the rows of sample tables, a table in memory at a time; of one ``role``, or of all."""
    columns = [name for name in SCHEMA.names if images or name != "png"]
    for path in paths:
        table = read_table(path, "samples", columns)
        if role is not None:
            table = table.filter(pc.equal(table["role"], role))
        for batch in table.to_batches(max_chunksize=64):
            yield from map(_from_row, batch.to_pylist())


def write_samples(samples: Iterable[JudgedSample], path: str | Path) -> int:
    """Writes a table; returns the number of its rows."""
    rows = [_to_row(sample) for sample in samples]
    write_table(pa.Table.from_pylist(rows, schema=SCHEMA), path, "samples")
    return len(rows)


def _from_row(row: dict[str, Any]) -> JudgedSample:
    claim = None if row["claim"] is None else Claim.model_validate_json(row["claim"])
    checks = None if row["checks"] is None else json.loads(row["checks"])
    return JudgedSample(**{**row, "claim": claim, "checks": checks})


def _to_row(sample: JudgedSample) -> dict[str, Any]:
    claim = None if sample.claim is None else sample.claim.model_dump_json()
    checks = None if sample.checks is None else json.dumps(sample.checks)
    return {**vars(sample), "claim": claim, "checks": checks}
