"""Logs of a training: ``log.jsonl`` and TensorBoard always, experiment trackers when configured. Written by rank 0."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from dataprep.io import storage
from train.config import TrainConfig
from train.trackers import start_trackers


class MetricLogger:
    """Log of a run; drops rows after the step to resume from, since they will be written again."""

    def __init__(self, folder: str, start: int, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.path = folder, storage.join(folder, "log.jsonl")
        rows = storage.read_json_lines(self.path)
        self.lines = [json.dumps(row) for row in rows if row["step"] <= start]
        self.flush()
        self.board = SummaryWriter(storage.join(folder, "tensorboard"), purge_step=start + 1)
        self.trackers = start_trackers(folder, config)

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row: immediately on a local disk; on an object store, which cannot append, at the next `flush`."""
        self.lines.append(json.dumps(row))
        if storage.is_local(self.path):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.lines[-1] + "\n")
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        for name, value in values.items():
            self.board.add_scalar(name, value, row["step"])
        for tracker in self.trackers:
            tracker.log(values, step=row["step"])

    def write_image(self, name: str, pixels_HWC: np.ndarray, step: int) -> None:
        """Writes an image, uint8 RGB (H, W, 3), to ``<name>/step-<step>.png`` and TensorBoard."""
        import cv2

        done, png = cv2.imencode(".png", cv2.cvtColor(pixels_HWC, cv2.COLOR_RGB2BGR))
        assert done
        storage.write_bytes(storage.join(self.folder, name, f"step-{step:08d}.png"), png.tobytes())
        self.board.add_image(name, pixels_HWC, step, dataformats="HWC")

    def flush(self) -> None:
        """Writes all rows to storage."""
        storage.write_bytes(self.path, "".join(line + "\n" for line in self.lines).encode())

    def close(self) -> None:
        """Flushes and closes the log."""
        self.flush()
        self.board.close()
        for tracker in self.trackers:
            tracker.finish()
