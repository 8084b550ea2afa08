"""Resources per stage in the config."""

from __future__ import annotations

from pipeline.runtime.config import ClusterConfig, StageResources


def test_train_applies_to_every_training_stage_without_an_entry() -> None:
    stages = {"train": StageResources(num_cpus=1), "train.sr32": StageResources(num_cpus=2)}
    config = ClusterConfig(stages=stages)
    requested = [config.stage_resources(stage).num_cpus for stage in ("train.base", "train.sr32", "download")]
    assert requested == [1, 2, None]
