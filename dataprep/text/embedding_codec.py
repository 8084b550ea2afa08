"""Storage of text embeddings: float16, or int8 with one scale per token.

Legend: T tokens (of one or several concatenated captions; never padded), D channels.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np

STORED: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "int8": np.dtype(np.int8),
}  # codec -> dtype of a stored value
CODECS = tuple(STORED)
SCALE = np.dtype("<f4")
EMPTY_TEXT_KEY = b"imagen_ray.empty_text"  # of a padded embeddings file: the packed embedding of the empty text
FLOAT16_MAX = float(np.finfo(np.float16).max)


def quantise(values_TD: np.ndarray, codec: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Quantises float (T, D): values_TD with the dtype of `STORED` and, for int8, float32 scale_T, one per token.

    float16: 2 bytes per value, no scale. int8: 1 byte per value in -127..127, with ``value = scale * int8``; the error
    is at most half a scale, 0.4% of the token's largest magnitude. Tokens are independent of each other.
    Raises ValueError for an unknown codec, another shape, or values that the codec cannot hold.
    """
    _check_codec(codec)
    if values_TD.ndim != 2:
        raise ValueError(f"embeddings have shape (tokens, channels), got {values_TD.shape}")
    values_TD = np.ascontiguousarray(values_TD, dtype=np.float32)
    peak_T = np.maximum(values_TD.max(axis=1, initial=0.0), -values_TD.min(axis=1, initial=0.0))
    check_peaks(peak_T, codec)
    if codec == "float16":
        return values_TD.astype(STORED[codec]), None
    # An all-zero token gets scale 1; a peak whose 127th part would underflow gets the smallest scale.
    scale_T = np.where(peak_T > 0, np.maximum(peak_T / 127, np.finfo(np.float32).tiny), 1).astype(SCALE)
    scaled_TD = values_TD / scale_T[:, None]
    np.clip(np.rint(scaled_TD, out=scaled_TD), -127, 127, out=scaled_TD)
    return scaled_TD.astype(np.int8), scale_T


def check_peaks(peak_T: np.ndarray, codec: str) -> None:
    """Raises ValueError for tokens whose largest magnitudes (or a multiple of them) the codec cannot hold."""
    if not np.isfinite(peak_T).all():  # max propagates NaN
        raise ValueError("an embedding holds NaN or infinity; run the encoder in float32 or bfloat16")
    if codec == "float16" and peak_T.max(initial=0.0) > FLOAT16_MAX:
        raise ValueError(f"an embedding holds {peak_T.max():g}, above float16's {FLOAT16_MAX:g}; use codec int8")


def dequantise(values_TD: np.ndarray, scale_T: np.ndarray | None, out_TD: np.ndarray | None = None) -> np.ndarray:
    """Inverts `quantise`: float32 (T, D), written to ``out_TD`` if given."""
    if out_TD is None:
        out_TD = np.empty(values_TD.shape, dtype=np.float32)
    if scale_T is None:
        out_TD[...] = values_TD
    else:
        np.multiply(values_TD, scale_T[:, None], out=out_TD)
    return out_TD


def view_stored(data: Any, scale: Any, dim: int, codec: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Views stored bytes (any buffer) as values_TD and scale_T, without copying.

    Raises ValueError for inconsistent sizes.
    """
    _check_codec(codec)
    row = dim * STORED[codec].itemsize
    size = memoryview(data).nbytes
    if dim < 1 or size % row:
        raise ValueError(f"{size} bytes do not hold whole tokens of {dim} {codec} values")
    values_TD = np.frombuffer(data, STORED[codec]).reshape(-1, dim)
    if codec == "float16":
        return values_TD, None
    found = None if scale is None else memoryview(scale).nbytes
    if found != SCALE.itemsize * len(values_TD):
        raise ValueError(f"codec int8 needs {SCALE.itemsize * len(values_TD)} bytes of scales, got {found}")
    return values_TD, np.frombuffer(scale, SCALE)


def encode_embedding(values_TD: np.ndarray, codec: str) -> tuple[bytes, bytes | None]:
    """Encodes one caption as a row of an embeddings file: the arrays of `quantise` as bytes, C order, little-endian."""
    stored_TD, scale_T = quantise(values_TD, codec)
    return stored_TD.tobytes(), None if scale_T is None else scale_T.tobytes()


def decode_embedding(data: bytes, scale: bytes | None, length: int, dim: int, codec: str) -> np.ndarray:
    """Inverts `encode_embedding`: float32 (length, dim). Raises ValueError for inconsistent sizes."""
    values_TD, scale_T = view_stored(data, scale, dim, codec)
    if len(values_TD) != length:
        raise ValueError(f"{len(data)} bytes do not hold {length} tokens of {dim} {codec} values")
    return dequantise(values_TD, scale_T)


def pack_embedding(values_TD: np.ndarray, codec: str) -> bytes:
    """Packs one caption's embedding, with its codec and shape, as ASCII for a file's metadata."""
    data, scale = encode_embedding(values_TD, codec)
    parts = {"data": base64.b64encode(data).decode(), "scale": scale and base64.b64encode(scale).decode()}
    return json.dumps({"codec": codec, "shape": list(values_TD.shape), **parts}).encode()


def unpack_embedding(packed: bytes) -> np.ndarray:
    """Inverts `pack_embedding`: float32 (T, D)."""
    given = json.loads(packed)
    scale = None if given["scale"] is None else base64.b64decode(given["scale"])
    length, dim = given["shape"]
    return decode_embedding(base64.b64decode(given["data"]), scale, length, dim, given["codec"])


def _check_codec(codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; one of {', '.join(CODECS)}")
