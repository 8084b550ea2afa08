"""Training that goes on where an earlier artifact of its stage stopped: more steps of it are the same training.

Every update is a function of the inputs, the code and `train.config.run_identity`. A stage of which only other keys
changed (`TrainConfig.resumable`: its length, where and how it computes, what is kept and logged) begins from the newest
checkpoint of an earlier artifact, finished or not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel

from dataprep.io import storage
from pipeline.store.artifact import Artifact
from pipeline.store.fingerprint import hash_json
from pipeline.store.run import Run
from train.config import TrainConfig, run_identity

TRAINING_FILE = "training.json"  # an `UpdateRule`
CHECKPOINT = re.compile(r"checkpoints/(step-(\d+))/commit\.json")
GRID = re.compile(r"samples/step-(\d+)\.png")
LOGS = ("log.jsonl", "samples/", "tensorboard/")


@dataclass(frozen=True)
class UpdateRule:
    """What determines each update of a training, as hashes, and how long it is.

    ``without_decay`` leaves out the length of the cosine, ``decay_steps``; None for a constant rate.
    """

    digest: str
    without_decay: str
    decay_steps: int | None
    steps: int


@dataclass(frozen=True)
class Beginning:
    """A checkpoint of an earlier artifact to begin from, or why there is none of the same training."""

    folder: str
    step: int
    obstacle: str = ""

    def describe(self) -> str:
        """Returns what a training will do, for a person."""
        earlier = self.folder.rsplit("/", 1)[-1][:8]
        return f"starts at step 0: {self.obstacle}" if self.obstacle else f"goes on from step {self.step} of {earlier}"


def find_update_rule(
    config: BaseModel, fingerprint_parts: Mapping[str, Any], inputs: Mapping[str, Artifact]
) -> UpdateRule | None:
    """Returns the rule of the training that a stage's config describes; None if it trains nothing.

    Args:
        fingerprint_parts: what the stage's fingerprint covers besides its config.
        inputs: its artifacts, which may have been rewritten (`imagen-ray forget`) under the same fingerprint.
    """
    loops = list(find_loops(config))
    if not loops:
        return None
    contents = {name: artifact.content for name, artifact in inputs.items()}
    shared = {**fingerprint_parts, "contents": contents, "config": _replace_loops(config)}
    identities = [run_identity(loop) for loop in loops]
    lasting = [{**identity, "decay_steps": None} for identity in identities]
    loop = loops[0]
    assert len(loops) == 1, "a stage trains one model"
    return UpdateRule(
        hash_json({**shared, "loops": identities}),
        hash_json({**shared, "loops": lasting}),
        loop.decay_length(),
        loop.steps,
    )


def find_beginning(run: Run, stage: str, folder: str, rule: UpdateRule) -> Beginning | None:
    """Returns where a training in ``folder`` begins; None for step 0, or if it has checkpoints of its own."""
    if _list_checkpoints(folder):
        return None
    found: list[Beginning] = []
    for earlier in run.stage_folders(stage):
        kept = storage.read_or_none(storage.join(earlier, TRAINING_FILE))
        checkpoints = _list_checkpoints(earlier) if kept is not None and earlier != folder else {}
        if not checkpoints:
            continue
        old = UpdateRule(**storage.read_json(storage.join(earlier, TRAINING_FILE)))
        # A training that ends at the checkpoint has its last validation only if the earlier one ended there as well.
        usable = [step for step in checkpoints if step < rule.steps or step == rule.steps == old.steps]
        if old.digest == rule.digest and usable:
            found.append(Beginning(earlier, max(usable)))
        elif old.without_decay == rule.without_decay and old.digest != rule.digest:
            found.append(Beginning(earlier, 0, _describe_decay(old, rule, max(checkpoints))))
    return max(found, key=lambda item: (item.step, item.folder), default=None)


def _describe_decay(old: UpdateRule, new: UpdateRule, step: int) -> str:
    text = f"its cosine ends at step {new.decay_steps}, that of the earlier training at {old.decay_steps}"
    return f"{text}; with decay_steps={old.decay_steps} it goes on from step {step}"


def begin_training(run: Run, stage: str, folder: str, rule: UpdateRule) -> Beginning | None:
    """Prepares ``folder``: links checkpoints and logs of `find_beginning`, if any, and records the rule."""
    beginning = find_beginning(run, stage, folder, rule)
    if beginning is not None and not beginning.obstacle:
        _link_training(beginning.folder, folder, beginning.step)
    storage.write_json(storage.join(folder, TRAINING_FILE), asdict(rule))
    return beginning


def _link_training(source: str, folder: str, step: int) -> None:
    """Links the checkpoints up to ``step``, each one's marker last and the newest first, after the logs."""
    names = storage.list_files(source)
    for name in names:
        if name == LOGS[0]:  # which is appended to
            storage.write_bytes(storage.join(folder, name), storage.read_bytes(storage.join(source, name)))
        elif name.startswith(LOGS[1:]) and not ((grid := GRID.fullmatch(name)) and int(grid[1]) > step):
            storage.duplicate(storage.join(source, name), storage.join(folder, name))
    for number, checkpoint in sorted(_list_checkpoints(source).items(), reverse=True):
        files = [name for name in names if name.startswith(f"checkpoints/{checkpoint}/")] if number <= step else []
        for name in sorted(files, key=lambda name: name.endswith("/commit.json")):
            storage.duplicate(storage.join(source, name), storage.join(folder, name))


def _list_checkpoints(folder: str) -> dict[int, str]:
    """Returns step -> folder name of every committed checkpoint."""
    names = storage.list_files(folder) if storage.exists(storage.join(folder, "checkpoints")) else []
    return {int(match[2]): match[1] for name in names if (match := CHECKPOINT.fullmatch(name))}


def find_loops(value: Any) -> Iterator[TrainConfig]:
    """Yields the trainings that a stage's config describes; at most one."""
    if isinstance(value, TrainConfig):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from find_loops(getattr(value, name))


def _replace_loops(value: Any) -> Any:
    """Returns a config as JSON values without its training loops."""
    if isinstance(value, TrainConfig):
        return None
    if isinstance(value, BaseModel) and any(find_loops(value)):
        return {name: _replace_loops(getattr(value, name)) for name in type(value).model_fields}
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value
