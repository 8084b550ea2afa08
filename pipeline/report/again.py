"""Pages made from artifacts whose content has changed since: made again, or taken away where that cannot be done."""

from __future__ import annotations

from collections.abc import Sequence

from dataprep import storage
from pipeline.report.build import MARKDOWN, REPORT, pages
from pipeline.report.card import CARD, card_files, publish_card
from pipeline.rewrite import update_manifest
from pipeline.store import Artifact, Run, describe

STUB = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>imagen-ray: report removed</title>
<p>This report was made before samples were forgotten, and it may have shown them. <code>imagen-ray run</code> makes
a new one.</p></html>
"""
EMPTY = {
    REPORT: STUB,
    MARKDOWN: "This summary was made before samples were forgotten; `imagen-ray run` makes a new one.\n",
}


def redo_pages(run: Run, artifacts: Sequence[Artifact]) -> list[str]:
    """Makes every data card and the newest report again from the artifacts as they are now; older reports are emptied.

    Returns a line for each page of the run folder itself: that it was made again, or why it could not be.
    """
    current = run.artifacts()
    for artifact in artifacts:
        if artifact.manifest.stage == "card":
            inputs = {name: run.artifact(name, fingerprint) for name, fingerprint in artifact.manifest.inputs.items()}
            whole = {name: found for name, found in inputs.items() if found is not None}
            # The counts of a card whose inputs were deleted name nobody; its hashes are of files that are gone.
            if len(whole) == len(inputs):
                _replace(run, artifact, card_files(whole, artifact.manifest.config["card"]))
        elif artifact.manifest.stage == "report":
            # First of all: whatever happens, the pictures are gone.
            _replace(run, artifact, {name: text for name, text in EMPTY.items() if artifact.has(name)})
    told = []
    if "card" in current:
        publish_card(run)
        told.append(f"made again: {run.path(CARD)}")
    if storage.exists(run.path(REPORT)):
        _write(run, {name: text for name, text in EMPTY.items() if storage.exists(run.path(name))})
        told.append(_report(run))
    return told


def _report(run: Run) -> str:
    artifacts = run.artifacts()
    if "report" not in artifacts:
        return f"emptied, the newest run has no report yet: {run.path(REPORT)}"
    try:
        made = pages(artifacts, run.record(), run.events())
    except Exception as error:  # made by an earlier version, say: told, and the page stays empty
        return f"emptied, it cannot be made again ({type(error).__name__}: {error}): {run.path(REPORT)}"
    _replace(run, artifacts["report"], {name: text for name, text in made.items() if artifacts["report"].has(name)})
    _write(run, made)
    return f"made again: {run.path(REPORT)}"


def _write(run: Run, files: dict[str, str]) -> None:
    for name, text in files.items():
        storage.write_bytes(run.path(name), text.encode())


def _replace(run: Run, artifact: Artifact, files: dict[str, str]) -> None:
    for name, text in files.items():
        storage.write_bytes(artifact.path(name), text.encode())
    new = {name: describe(artifact.folder, name) for name in files if artifact.has(name)}
    if any(output not in artifact.manifest.outputs for output in new.values()):
        update_manifest(run, artifact, new)
