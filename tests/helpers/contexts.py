"""A stage's context without a pipeline."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.runtime.config import ClusterConfig
from pipeline.runtime.context import Context
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run


def make_context(
    root: str | Path, stage: str, inputs: dict[str, Artifact] | None = None, fingerprint: str = "f" * 20, **cluster: Any
) -> Context[Any, Any]:
    """Returns a context whose outputs go to ``root/stages/<stage>/<fingerprint>``."""
    run = Run(str(root))
    return Context(
        stage=stage,
        config=None,
        inputs=SimpleNamespace(**(inputs or {})),
        folder=run.stage_folder(stage, fingerprint),
        run=run,
        cluster=ClusterConfig(**cluster),
        artifacts=inputs or {},
    )
