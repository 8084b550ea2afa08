"""Small images with captions as a stream of batches, for tests of tasks on images."""

from __future__ import annotations

import numpy as np
import torch

from train.loader.loader import Batch, Stream

TEXT = 8  # width of the captions' tokens


class Pictures(Stream):
    """``count`` images of 16x16, and of 8x8: a square on a ground, each of one of 4 colours, and a caption of both."""

    def __init__(self, count: int = 32, batch_size: int = 8, seed: int = 0) -> None:
        super().__init__(count, seed, batch_size)
        rng = np.random.default_rng(7)
        colours = np.array([[230, 40, 40], [40, 200, 60], [50, 60, 220], [240, 220, 60]], np.uint8)
        ground, square = rng.integers(0, 4, count), rng.integers(0, 4, count)
        images = np.repeat(np.repeat(colours[ground][:, None, None], 16, 1), 16, 2)
        for row, (top, left) in enumerate(rng.integers(0, 9, (count, 2))):
            images[row, top : top + 8, left : left + 8] = colours[square[row]]
        self.large = torch.from_numpy(images)
        small = torch.nn.functional.avg_pool2d(self.large.permute(0, 3, 1, 2).float(), 2)
        self.small = small.round().byte().permute(0, 2, 3, 1).contiguous()
        words = torch.randn(8, TEXT, generator=torch.Generator().manual_seed(3))
        self.text = torch.stack([words[ground], words[4 + square]], dim=1)

    def gather(self, rows: np.ndarray, positions: np.ndarray) -> Batch:
        at = torch.from_numpy(np.asarray(rows))
        batch: Batch = {"key": [f"row{row}" for row in rows], "caption": [f"picture {row}" for row in rows]}
        batch |= {"pixels_16": self.large[at], "pixels_8": self.small[at], "text_BLD": self.text[at]}
        return batch | {"text_mask_BL": torch.ones(len(rows), 2, dtype=torch.bool)}
