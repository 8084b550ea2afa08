"""Quantises embeddings on the device of their encoder, with the bytes of `dataprep.text.embedding_codec.quantise`.

Legend: T tokens of a batch (captions concatenated), D channels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dataprep.io.device_copy import HostCopy
from dataprep.text.embedding_codec import check_peaks

TINY = float(np.finfo(np.float32).tiny)


class QuantisedTokens(NamedTuple):
    """Tokens as they are stored, and what tells of their error, on their way to the host."""

    values_TD: HostCopy  # int8 or float16
    scale_T: HostCopy  # float32; of float16 the peaks
    sums_3T: HostCopy  # float32: squares of the tokens, of the decoded tokens, and their products
    errors_T: HostCopy  # float32: squared error


def start_quantise(tokens_TD: Tensor, codec: str) -> QuantisedTokens:
    """Starts to quantise tokens and to copy the result; `finish_quantise` waits for it."""
    tokens_TD = tokens_TD.float()
    peak_T = tokens_TD.abs().amax(dim=1) if tokens_TD.shape[1] else tokens_TD.new_zeros(len(tokens_TD))
    if codec == "float16":
        scale_T, values_TD = peak_T, tokens_TD.half()
        decoded_TD = values_TD.float()
    else:
        scale_T = torch.where(peak_T == 0, 1.0, (peak_T / 127).clamp(min=TINY))  # NaN stays NaN
        values_TD = (tokens_TD / scale_T[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        decoded_TD = values_TD * scale_T[:, None]
    sums_3T = torch.stack(
        [
            (one * other).sum(1)
            for one, other in ((tokens_TD, tokens_TD), (decoded_TD, decoded_TD), (decoded_TD, tokens_TD))
        ]
    )
    errors_T = (decoded_TD - tokens_TD).square_().sum(1)
    return QuantisedTokens(*(HostCopy(value) for value in (values_TD, scale_T, sums_3T, errors_T)))


def finish_quantise(started: QuantisedTokens, codec: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns values_TD and scale_T as `dataprep.text.embedding_codec.quantise` does, and raises as it does."""
    scale_T: np.ndarray = started.scale_T.wait().numpy()
    check_peaks(scale_T, codec)
    return started.values_TD.wait().numpy(), None if codec == "float16" else scale_T
