"""Logs of a training: ``log.jsonl`` and TensorBoard always, Weights & Biases when configured. Written by rank 0."""

from __future__ import annotations

import hashlib
import json
import tempfile
from typing import Any

import numpy as np

from dataprep.io import storage
from dataprep.io.errors import UserError
from train.config import TrainConfig


class MetricLogger:
    """Log of a run; drops rows after the step to resume from, since they will be written again."""

    def __init__(self, folder: str, start: int, config: TrainConfig) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.folder, self.path = folder, storage.join(folder, "log.jsonl")
        rows = storage.read_json_lines(self.path)
        self.lines = [json.dumps(row) for row in rows if row["step"] <= start]
        self.flush()
        self.board = SummaryWriter(storage.join(folder, "tensorboard"), purge_step=start + 1)
        self.wandb = start_wandb(folder, config) if config.wandb != "off" else None

    def write(self, row: dict[str, Any]) -> None:
        """Adds a row: immediately on a local disk; on an object store, which cannot append, at the next `flush`."""
        self.lines.append(json.dumps(row))
        if storage.is_local(self.path):
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(self.lines[-1] + "\n")
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        for name, value in values.items():
            self.board.add_scalar(name, value, row["step"])
        if self.wandb is not None:
            self.wandb.log(values, step=row["step"])

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
        if self.wandb is not None:
            self.wandb.finish()


def start_wandb(folder: str, config: TrainConfig) -> Any:
    """Starts or resumes the Weights & Biases run of this folder; UserError if the library is missing."""
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"wandb={config.wandb}: the library is not installed; `pip install wandb`, or set wandb=off"
        ) from error
    local = folder if storage.is_local(folder) else tempfile.mkdtemp(prefix="imagen-ray-")
    return wandb.init(
        project=config.wandb_project,
        id=hashlib.sha256(folder.encode()).hexdigest()[:16],
        name="/".join(folder.rstrip("/").split("/")[-2:]),
        dir=local,
        mode="online" if config.wandb == "online" else "offline",
        resume="allow",
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(silent=True, console="off"),
    )
