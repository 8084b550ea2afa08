"""The loader of an earlier commit, measured by that commit's own benchmark; run by `benchmarks.loader`.

    python benchmarks/loader_before.py write|measure SIDE FOLDER

Stands alone, with the packages of that commit on the path; prints one JSON object.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import torch

from benchmarks.loader import SAMPLES, make_samples, measure_epochs
from benchmarks.loader_sides import SIDES


def main() -> None:
    """Writes the samples of a side, or measures two epochs of them."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    action, side, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if action == "write":
        folder.mkdir()
        SIDES[side].write(make_samples(SAMPLES), folder)
        print(json.dumps({}))
    else:
        print(json.dumps(measure_epochs(side, folder)))


if __name__ == "__main__":
    main()
