"""A process imports what its work needs: the heavy libraries that each kind of process may load."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

HEAVY = {
    *("torch", "torchvision", "transformers", "open_clip", "deepspeed", "img2dataset", "ray", "cv2", "imagehash"),
    *("py3langid", "scipy", "sklearn", "pandas", "plotly", "networkx", "aiohttp", "s3fs", "PIL", "jinja2"),
}
ACTOR = {"ray"}  # of shard workers
# kind of process -> the modules that its work imports, and the heavy libraries that these may load
PROCESSES: dict[str, tuple[str, set[str]]] = {
    "help": ("pipeline.cli.main", set()),
    "status": ("pipeline.jobs.status", set()),
    "config and plan": ("pipeline.config_loading, pipeline.execution.plan", set()),
    "download": ("pipeline.stages.download, dataprep.download.shard", ACTOR | {"aiohttp", "cv2", "PIL"}),
    "annotate": ("pipeline.stages.annotate, dataprep.annotate", ACTOR | {"cv2", "imagehash", "py3langid", "PIL"}),
    "pack": ("pipeline.stages.pack, dataprep.pack", ACTOR | {"cv2", "PIL"}),
    "embed": ("pipeline.stages.embed, dataprep.text.embed", ACTOR | {"torch"}),
    # jinja2 is imported by transformers' tokenizers
    "score": ("pipeline.stages.score, eval.clip.scorer", ACTOR | {"torch", "transformers", "cv2", "PIL", "jinja2"}),
    "training rank": ("pipeline.runtime.worker_process, train.tasks.diffusion", ACTOR | {"torch", "cv2"}),
    "driver of a training": ("pipeline.runtime.training, pipeline.stages.train", {"ray"}),
}


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_process_loads_no_library_that_it_does_not_need(kind: str) -> None:
    modules, allowed = PROCESSES[kind]
    code = f"import sys, {modules}{', pipeline.runtime.shard_map' if 'ray' in allowed else ''}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert HEAVY.intersection(loaded.split()) - allowed == set()
