"""Captions of a batch as they are stored, without padding, and unpacked on the device that trains.

Shape legend: B batch, T tokens of all captions, L tokens of one caption with padding, D text width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from train.loader.host_memory import empty_host
from train.loader.row_group import TextColumn, decode_tokens

# Lengths to which a device pads: few, so that shapes repeat and memory does not fragment.
FIXED_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256)


class StoredText(NamedTuple):
    """Embeddings of a batch: caption i has ``length_B[i]`` rows of ``values_TD``, from ``start_B[i]`` on."""

    values_TD: Tensor  # int8, or float16, or float32 where captions of both codecs meet
    scale_T: Tensor | None  # float32, of int8
    start_B: Tensor  # int64
    length_B: Tensor  # int64
    longest: int  # tokens of the longest caption, 1 or more


def gather_text(rows: Sequence[tuple[TextColumn, int]]) -> StoredText:
    """Copies captions, given as columns and row numbers in these, one after the other; pinned if a GPU is in use."""
    spans = [(text, *text.span(row)) for text, row in rows]
    lengths = np.array([stop - start for _, start, stop in spans])
    ends = np.cumsum(lengths)
    codecs = {text.values_TD.dtype for text, *_ in spans}
    mixed = len(codecs) > 1
    width, dtype = spans[0][0].values_TD.shape[1], np.dtype(np.float32) if mixed else codecs.pop()
    values_TD = empty_host((int(ends[-1]), width), dtype)
    scale_T = empty_host((int(ends[-1]),), np.dtype(np.float32)) if dtype == np.int8 else None
    values, scales = values_TD.numpy(), None if scale_T is None else scale_T.numpy()
    for (text, start, stop), end in zip(spans, ends.tolist(), strict=True):
        own = slice(end - (stop - start), end)
        scale_L = None if text.scale_T is None else text.scale_T[start:stop]
        if mixed:
            decode_tokens(text.values_TD[start:stop], scale_L, values[own])
            continue
        values[own] = text.values_TD[start:stop]
        if scales is not None:
            scales[own] = scale_L
    start_B, length_B = (torch.from_numpy(part) for part in (ends - lengths, lengths))
    return StoredText(values_TD, scale_T, start_B, length_B, max(1, int(lengths.max())))


def unpack_text(text: StoredText, few_lengths: bool = False) -> tuple[Tensor, Tensor]:
    """Returns ``text_BLD`` float32, zero-padded, and ``text_mask_BL`` bool, True at tokens, where ``text`` lies.

    On a CPU L is the longest caption's, elsewhere and with ``few_lengths`` the next of `FIXED_LENGTHS`. Reads nothing
    back from the device.
    """
    by_row = unpacks_by_row(text.values_TD.device)
    length = text.longest if by_row and not few_lengths else padded_length(text.longest)
    if by_row:
        return _unpack_rows(text, length)
    total, width = text.values_TD.shape
    place_L = torch.arange(length, device=text.start_B.device)
    mask_BL = place_L < text.length_B[:, None]
    if total == 0:
        return torch.zeros(*mask_BL.shape, width, device=mask_BL.device), mask_BL
    at_BL = (text.start_B[:, None] + place_L).clamp_(max=total - 1)
    text_BLD = text.values_TD[at_BL].float()
    if text.scale_T is not None:
        text_BLD.mul_(text.scale_T[at_BL][..., None])
    return text_BLD.masked_fill_(~mask_BL[..., None], 0), mask_BL


def unpacks_by_row(device: torch.device) -> bool:
    """Returns whether captions are unpacked one by one, which is faster than by index on a CPU alone."""
    return device.type == "cpu"


def padded_length(longest: int) -> int:
    """Returns the length to which a device pads a batch whose longest caption has ``longest`` tokens."""
    step = FIXED_LENGTHS[-1]
    return next((length for length in FIXED_LENGTHS if length >= longest), -(-longest // step) * step)


def _unpack_rows(text: StoredText, length: int) -> tuple[Tensor, Tensor]:
    shape = (len(text.length_B), length, text.values_TD.shape[1])
    text_BLD = np.empty(shape, np.float32)  # NumPy asks for huge pages, torch does not
    values_TD, scale_T = text.values_TD.numpy(), None if text.scale_T is None else text.scale_T.numpy()
    spans = zip(text.start_B.tolist(), text.length_B.tolist(), strict=True)
    for text_LD, (start, tokens) in zip(text_BLD, spans, strict=True):
        own = slice(start, start + tokens)
        decode_tokens(values_TD[own], None if scale_T is None else scale_T[own], text_LD[:tokens])
        text_LD[tokens:] = 0
    return torch.from_numpy(text_BLD), torch.arange(length) < text.length_B[:, None]
