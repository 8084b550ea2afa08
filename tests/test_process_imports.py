"""A process imports what its work needs: the heavy libraries that each kind of process may load."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

HEAVY = {
    *("torch", "torchvision", "transformers", "open_clip", "deepspeed", "img2dataset", "ray", "cv2", "imagehash"),
    *("py3langid", "scipy", "sklearn", "pandas", "plotly", "networkx", "aiohttp", "s3fs", "PIL", "jinja2"),
    *("torch._dynamo", "sympy", "timm", "accelerate"),
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


# Forks a process per kind, so that what all of a group may load is imported once: nothing, Ray, Ray and torch.
FORKS = """
import importlib, json, os, sys
for shared, processes in json.loads(sys.argv[1]):
    for name in shared:
        importlib.import_module(name)
    for kind, modules in processes.items():
        if os.fork() == 0:
            try:
                for name in modules.split(", "):
                    importlib.import_module(name)
                print(json.dumps([kind, *sys.modules]), flush=True)
            finally:
                os._exit(0)
        os.wait()
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Returns the modules that each kind of process has loaded."""
    groups: dict[tuple[str, ...], dict[str, str]] = {(): {}, ("ray", "pipeline.runtime.shard_map"): {}, ("torch",): {}}
    light, with_ray, with_torch = groups.values()
    for kind, (modules, allowed) in PROCESSES.items():
        (with_torch if "torch" in allowed else with_ray if "ray" in allowed else light)[kind] = modules
    words = [sys.executable, "-c", FORKS, json.dumps([*groups.items()])]
    lines = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    return {kind: set(names) for kind, *names in map(json.loads, lines)}


@pytest.mark.parametrize("kind", PROCESSES)
def test_a_process_loads_no_library_that_it_does_not_need(loaded: dict[str, set[str]], kind: str) -> None:
    modules, allowed = PROCESSES[kind]
    assert loaded[kind].issuperset(modules.split(", "))
    assert HEAVY & loaded[kind] - allowed == set()


TRAINED = """
import sys
import tempfile
import torch
from dataprep.text.encoder import TextEncoder
from train.config import TrainConfig
from train.engine import Engine
from train.tasks.t5 import T5Task
from train.tasks.t5_config import T5TaskConfig

task = T5Task(T5TaskConfig(d_model=8, layers=1, heads=2, d_ff=8, vocabulary=300), ["a red circle"])
model = task.build()
engine = Engine(model, TrainConfig(batch_size=1, zero_stage=2))
ids = torch.ones(1, 2, dtype=torch.long)
engine.backward(engine(input_ids=ids, labels=ids).loss)
assert engine.step(0.1).applied
engine.optimizer.state_dict()
with tempfile.TemporaryDirectory() as folder:
    task.export(folder, engine.weights(), 1)
    assert len(TextEncoder.from_folder(folder).encode(["a red circle"])) == 1
print(*sys.modules)
"""


def test_training_and_loading_the_text_encoder_load_no_compiler() -> None:
    loaded = subprocess.run([sys.executable, "-c", TRAINED], cwd=ROOT, capture_output=True, text=True, check=True)
    allowed = {"torch", "deepspeed", "transformers", "jinja2", "cv2", "PIL", "sympy"}  # torch's meta device needs sympy
    assert HEAVY.intersection(loaded.stdout.split()) <= allowed
    assert "deepspeed" in loaded.stdout.split()
