"""The content of run.json: command, config, versions, and the state of every stage."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataprep.io import storage
from pipeline.execution.plan import PlannedStage
from pipeline.store.driver import describe_driver
from pipeline.store.run import RUN_FILE, Run, current_time

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class RunRecord:
    """run.json while a driver runs; thread-safe."""

    def __init__(self, run: Run, content: dict[str, Any]) -> None:
        self.run, self.content, self.lock = run, content, threading.RLock()
        self.save()

    @classmethod
    def start(
        cls, run: Run, config: RunConfig, command: str, planned: Sequence[PlannedStage], before: dict[str, Any] | None
    ) -> RunRecord:
        """Writes run.json for a starting run; ``before`` is its previous content."""
        versions: dict[str, str] = {}
        for item in planned:
            versions |= item.parts.versions
        content = {
            "run": config.run,
            "status": "running",
            "started": current_time(),
            "finished": None,
            "command": command,
            "driver": describe_driver(),
            "seed": config.seed,
            "git_commit": read_git_commit(),
            "versions": dict(sorted(versions.items())),
            "config": config.model_dump(mode="json"),
            "stages": {item.stage.name: _describe_stage(item, before) for item in planned},
        }
        return cls(run, content)

    def update(self, **changes: Any) -> None:
        """Replaces top-level values."""
        with self.lock:
            self.content |= changes
            self.save()

    def update_stage(self, stage: str, **changes: Any) -> None:
        """Replaces values of a stage's entry."""
        with self.lock:
            self.content["stages"][stage] |= changes
            self.save()

    def save(self) -> None:
        """Writes the file."""
        with self.lock:
            storage.write_json(self.run.path(RUN_FILE), self.content)


def _describe_stage(item: PlannedStage, before: dict[str, Any] | None) -> dict[str, Any]:
    """Returns a stage's entry at the start of a run; "finished" is its last finished fingerprint."""
    state, seconds = ("done", item.artifact.manifest.seconds) if item.artifact else ("pending", None)
    last = (before or {}).get("stages", {}).get(item.stage.name, {}).get("finished")
    finished = item.fingerprint if item.artifact else last
    entry = {"fingerprint": item.fingerprint, "state": state, "seconds": seconds, "finished": finished}
    return entry | ({"kept": item.reason} if item.artifact and item.reason else {})


def read_git_commit() -> str | None:
    """Returns the commit of the running code, with ``+changes`` if the tree is dirty; None outside git."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")
