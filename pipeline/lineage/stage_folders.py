"""Every stage folder of a run: all fingerprints, finished or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from dataprep.io import storage
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run

LISTED = ("listing", "download")  # the stages whose rows have the URL


@dataclass(frozen=True)
class StageFolder:
    """A stage's folder in the run; ``artifact`` is None if the stage is not finished there."""

    stage: str
    fingerprint: str
    files: list[str]  # relative to the folder
    artifact: Artifact | None

    @property
    def name(self) -> str:
        """The folder's path below RUN/stages."""
        return f"{self.stage}/{self.fingerprint}"


def list_stage_folders(run: Run) -> Iterator[StageFolder]:
    """Yields every folder of every stage, under all fingerprints."""
    root = run.path("stages")
    files: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in storage.list_files(root) if storage.exists(root) else []:
        stage, _, rest = name.partition("/")
        fingerprint, _, inner = rest.partition("/")
        files[stage, fingerprint].append(inner)
    for (stage, fingerprint), names in sorted(files.items()):
        yield StageFolder(stage, fingerprint, names, run.artifact(stage, fingerprint))
