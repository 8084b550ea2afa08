"""`imagen_ray.run`."""

from __future__ import annotations

from collections.abc import Sequence

from dataprep.io.progress_bars import disable_progress_bars
from pipeline.config import RunConfig
from pipeline.execution.executor import run_pipeline
from pipeline.store.run import Run


def run(config: RunConfig, *, until: str | None = None, keep: Sequence[str] = ()) -> Run:
    """Runs the pipeline as ``imagen-ray run`` does and returns the run; finished stages are skipped.

    Args:
        config: what `load_config` returns.
        until: the last stage to run; default: all.
        keep: finished stages to keep although their code or libraries changed.

    Raises:
        UserError: the config, a stage name or an input is wrong.
        StageError: a stage failed; finished work is kept, and the same call resumes.
    """
    disable_progress_bars()
    return run_pipeline(config, f"imagen_ray.run({config.run!r})", until, keep)
