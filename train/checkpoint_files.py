"""Names and places of a checkpoint's files, see `train.checkpoint`."""

from __future__ import annotations

import re

from dataprep.io import storage

FORMAT, COMMIT_FILE, STATE_FILE, BUFFERS_FILE = 2, "commit.json", "state.json", "buffers.safetensors"
COMPANIONS_FILE = "companions.safetensors"  # `train.task.Companion`
SEPARATOR = "|"  # between a parameter's name and its slot; neither contains it


def checkpoint_path(folder: str, step: int) -> str:
    """Returns the path of the checkpoint of ``step``."""
    return storage.join(folder, f"step-{step:08d}")


def rank_file(rank: int) -> str:
    """Returns the name of the file with a rank's share."""
    return f"rank-{rank:05d}.safetensors"


def list_steps(folder: str) -> list[tuple[int, str]]:
    """Returns (step, path) of every checkpoint folder, whole or torn, newest first."""
    if not storage.exists(folder):
        return []
    names = {name.split("/")[0] for name in storage.list_files(folder)}
    steps = [int(match[1]) for name in names if (match := re.fullmatch(r"step-(\d+)", name))]
    return [(step, checkpoint_path(folder, step)) for step in sorted(steps, reverse=True)]
