"""Switches off the progress bars of libraries, which would mix with our own progress and with output that is parsed."""

from __future__ import annotations

import os

# Read when huggingface_hub (and through it transformers) and tqdm are imported.
NO_PROGRESS_BARS = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


def disable_progress_bars() -> None:
    """Sets the switches for this process and its children; values that the user set are kept.

    Call it before transformers, open_clip or huggingface_hub is imported.
    """
    for name, value in NO_PROGRESS_BARS.items():
        os.environ.setdefault(name, value)
