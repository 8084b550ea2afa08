"""A finished run of which only the trained parts exist: a base, a super-resolution stage and an encoder's export."""

from __future__ import annotations

from pathlib import Path

from dataprep.io import storage
from pipeline.store.artifact import Artifact, Manifest, describe_file
from pipeline.store.run import Run
from tests.helpers.cascades import trained
from tests.helpers.encoders import save_encoder
from train.diffusion.config import DiffusionConfig
from train.models.export import save_stage
from train.models.unet.config import UNetConfig


def commit_stage(run: Run, stage: str, fingerprint: str) -> Artifact:
    """Commits what lies in a stage's folder, and adds the stage to run.json."""
    folder = run.stage_folder(stage, fingerprint)
    outputs = [describe_file(folder, name) for name in storage.list_files(folder)]
    artifact = run.commit(Manifest(stage, fingerprint, {}, {}, outputs, {}, 1.0, {}))
    record = run.read_record() or {"stages": {}, "config": {}, "seed": 0, "started": "now"}
    record["stages"][stage] = {"fingerprint": fingerprint, "state": "done", "finished": fingerprint}
    storage.write_json(run.path("run.json"), record)
    return artifact


def write_trained_run(root: Path, **configs: UNetConfig) -> Run:
    """Writes a run with a trained stage ``train.<name>`` for each config, and an encoder 32 wide."""
    run = Run(str(root))
    for number, (name, config) in enumerate(configs.items()):
        fingerprint = f"{number}" * 20
        folder = Path(run.stage_folder(f"train.{name}", fingerprint))
        save_stage(folder / "export", trained(config), config, DiffusionConfig().model_dump(mode="json"), 5)
        commit_stage(run, f"train.{name}", fingerprint)
    encoder = Path(run.stage_folder("encoder", "e" * 20))
    save_encoder(encoder / "export", "t5")
    storage.write_json(str(encoder / "model.json"), {"model": None})
    commit_stage(run, "encoder", "e" * 20)
    return run
