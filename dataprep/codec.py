"""How a text embedding is stored: float16, or int8 with one scale a token.

Legend: L tokens of one caption (never padded), D channels.
"""

from __future__ import annotations

import numpy as np

CODECS = ("float16", "int8")
FLOAT16_MAX = float(np.finfo(np.float16).max)


def encode(embedding_LD: np.ndarray, codec: str) -> tuple[bytes, bytes | None]:
    """Packs a float (L, D) array into bytes, row by row, little-endian.

    float16: 2 bytes a value, no scale. int8: 1 byte a value in -127..127 and L float32 scales, one a token, so that
    ``value = scale * int8``; the error is at most half a scale, that is 0.4% of the token's largest magnitude.
    Raises ValueError for an unknown codec, another shape, or values that the codec cannot hold.
    """
    _check_codec(codec)
    if embedding_LD.ndim != 2:
        raise ValueError(f"an embedding has shape (tokens, channels), got {embedding_LD.shape}")
    values_LD = np.ascontiguousarray(embedding_LD, dtype=np.float32)
    if not np.isfinite(values_LD).all():
        raise ValueError("an embedding holds NaN or infinity; run the encoder in float32 or bfloat16")
    peak_L = np.abs(values_LD).max(axis=1, initial=0.0)
    if codec == "float16":
        if peak_L.max(initial=0.0) > FLOAT16_MAX:
            raise ValueError(f"an embedding holds {peak_L.max():g}, above float16's {FLOAT16_MAX:g}; use codec int8")
        return values_LD.astype("<f2").tobytes(), None
    # A token of nothing but zeros gets scale 1; a peak so small that its 127th part would vanish gets the least scale.
    scale_L = np.where(peak_L > 0, np.maximum(peak_L / 127, np.finfo(np.float32).tiny), 1).astype("<f4")
    int8_LD = np.clip(np.rint(values_LD / scale_L[:, None]), -127, 127).astype(np.int8)
    return int8_LD.tobytes(), scale_L.tobytes()


def decode(data: bytes, scale: bytes | None, length: int, dim: int, codec: str) -> np.ndarray:
    """Unpacks what `encode` packed: float32 (length, dim). Raises ValueError where the sizes do not fit together."""
    _check_codec(codec)
    width = 2 if codec == "float16" else 1
    if len(data) != length * dim * width:
        raise ValueError(f"{len(data)} bytes do not hold {length} tokens of {dim} {codec} values")
    if codec == "float16":
        return np.frombuffer(data, "<f2").reshape(length, dim).astype(np.float32)
    if scale is None or len(scale) != 4 * length:
        raise ValueError(f"codec int8 needs {4 * length} bytes of scales, got {None if scale is None else len(scale)}")
    scale_L = np.frombuffer(scale, "<f4")
    return np.frombuffer(data, np.int8).reshape(length, dim).astype(np.float32) * scale_L[:, None]


def _check_codec(codec: str) -> None:
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; one of {', '.join(CODECS)}")
