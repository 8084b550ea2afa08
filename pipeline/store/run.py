"""The run folder on a disk or any fsspec URL: artifacts, run.json, events.jsonl, verification.

RUN/run.json                                       command, config, versions, and the state of every stage
RUN/events.jsonl                                   one line per event, appended
RUN/stages/<stage>/<fingerprint>/manifest.json     written last: its presence means the stage is finished
RUN/stages/<stage>/<fingerprint>/.shards/<id>.json the same for one shard of an unfinished stage
RUN/.lease/<n>.json                                on object stores: the driver holding the run (pipeline.store.lease)
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dataprep.io import storage
from dataprep.io.errors import UserError
from pipeline.store.artifact import MANIFEST, Artifact, Manifest

RUN_FILE, EVENTS_FILE = "run.json", "events.jsonl"
_EVENTS_LOCK = threading.Lock()  # stages run concurrently


class Run:
    """A run folder at ``root``."""

    def __init__(self, root: str) -> None:
        self.root = storage.absolute(root).rstrip("/")

    def path(self, *parts: str) -> str:
        """Returns a path below the run folder."""
        return storage.join(self.root, *parts)

    def stage_folder(self, stage: str, fingerprint: str) -> str:
        """Returns the folder of ``stage`` with this fingerprint."""
        return self.path("stages", stage, fingerprint)

    def artifact(self, stage: str, fingerprint: str) -> Artifact | None:
        """Returns the artifact of the stage with this fingerprint; None if it is not finished."""
        folder = self.stage_folder(stage, fingerprint)
        manifest = storage.read_or_none(storage.join(folder, MANIFEST))
        return None if manifest is None else Artifact(folder, Manifest.from_json(json.loads(manifest)))

    def stage_folders(self, stage: str) -> list[str]:
        """Returns the folders of ``stage`` under all fingerprints, finished or not."""
        folder = self.path("stages", stage)
        return [storage.join(folder, name) for name in storage.list_folders(folder)]

    def last_manifest(self, stage: str) -> Manifest | None:
        """Returns the manifest of ``stage`` when it last finished, under any fingerprint; None if it never did."""
        finished = (self.read_record() or {}).get("stages", {}).get(stage, {}).get("finished")
        artifact = self.artifact(stage, finished) if finished else None
        return artifact.manifest if artifact else None

    def commit(self, manifest: Manifest) -> Artifact:
        """Publishes ``manifest``, which marks the stage as finished."""
        folder = self.stage_folder(manifest.stage, manifest.fingerprint)
        storage.write_json(storage.join(folder, MANIFEST), asdict(manifest))
        return Artifact(folder, manifest)

    def read_record(self) -> dict[str, Any] | None:
        """Returns run.json, or None if there is none yet."""
        record = storage.read_or_none(self.path(RUN_FILE))
        return None if record is None else json.loads(record)

    def record(self) -> dict[str, Any]:
        """Returns run.json; raises UserError if there is none."""
        if (record := self.read_record()) is None:
            raise UserError(f"{self.root}: not a run (run.json is missing); start one with `imagen-ray run CONFIG`")
        return record

    def artifacts(self) -> dict[str, Artifact]:
        """Returns the finished stages of run.json, in the order of the pipeline."""
        found = {}
        for stage, entry in self.record()["stages"].items():
            if artifact := self.artifact(stage, entry["fingerprint"]):
                found[stage] = artifact
        return found

    def event(self, kind: str, **values: Any) -> None:
        """Appends a line to events.jsonl: UTC time, kind and values."""
        line = json.dumps({"time": current_time(), "event": kind, **values}, ensure_ascii=False) + "\n"
        path = self.path(EVENTS_FILE)
        with _EVENTS_LOCK:
            if storage.is_local(path):
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(line)
            else:  # no append on object stores; the log is small, and the driver its only writer
                storage.write_bytes(path, (storage.read_or_none(path) or b"") + line.encode())

    def events(self) -> list[dict[str, Any]]:
        """Returns the events so far."""
        return storage.read_json_lines(self.path(EVENTS_FILE))


def current_time() -> str:
    """Returns the time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def verify_outputs(run: Run) -> Iterator[tuple[str, int, list[str]]]:
    """Rehashes every output of every finished stage of ``run``.

    Yields:
        The stage, its number of files, and a message per file that is missing or differs from its manifest.
    """
    for stage, artifact in run.artifacts().items():
        problems = []
        for output in artifact.manifest.outputs:
            path = artifact.path(output.path)
            if not storage.exists(path):
                problems.append(f"{path}: missing")
                continue
            sha256, size = storage.sha256_file(path)
            if (sha256, size) != (output.sha256, output.bytes):
                was = f"{output.bytes} bytes, sha256 {output.sha256[:12]}"
                problems.append(f"{path}: differs (is {size} bytes, sha256 {sha256[:12]}; was {was})")
        yield stage, len(artifact.manifest.outputs), problems
