"""Progress bars of libraries are off."""

from __future__ import annotations

import os
import subprocess
import sys

from dataprep.io.progress_bars import NO_PROGRESS_BARS

PROBE = """
from dataprep.io.progress_bars import disable_progress_bars
disable_progress_bars()
from huggingface_hub.utils import tqdm as hub_tqdm
from tqdm import tqdm
from transformers.utils import logging
for bar in (hub_tqdm, tqdm, logging.tqdm):
    list(bar(range(3), desc="Loading weights"))
"""


def test_bars_of_three_libraries_print_nothing() -> None:
    env = {name: value for name, value in os.environ.items() if name not in NO_PROGRESS_BARS}
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
    loud = PROBE.replace("disable_progress_bars()\n", "\n", 1).replace("import disable_progress_bars", "import os")
    assert (
        "Loading weights"
        in subprocess.run([sys.executable, "-c", loud], env=env, capture_output=True, text=True).stderr
    )
