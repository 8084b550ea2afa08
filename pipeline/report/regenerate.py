"""Rebuilds pages after samples were forgotten; a page that cannot be rebuilt is emptied."""

from __future__ import annotations

from collections.abc import Sequence

from dataprep.card.config import CardConfig
from dataprep.io import storage
from dataprep.listing.config import ListingConfig
from pipeline.report.build import MARKDOWN, REPORT, build_pages
from pipeline.report.data_card_files import CARD, build_data_card, publish_data_card
from pipeline.store.artifact import Artifact, describe_file
from pipeline.store.run import Run

STUB = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>imagen-ray: report removed</title>
<p>Samples were forgotten since this report was made, and it may have shown them. <code>imagen-ray run</code> makes
a new one.</p></html>
"""
EMPTY = {
    REPORT: STUB,
    MARKDOWN: "Samples were forgotten since this summary was made; `imagen-ray run` makes a new one.\n",
}


def rebuild_pages(run: Run, artifacts: Sequence[Artifact]) -> list[str]:
    """Rebuilds every data card and the newest report from the artifacts as they are now, and empties older reports.

    Returns a line per page of the run folder: that it was rebuilt, or why it could not be.
    """
    current = run.artifacts()
    for artifact in artifacts:
        if artifact.manifest.stage == "card":
            inputs = {name: run.artifact(name, fingerprint) for name, fingerprint in artifact.manifest.inputs.items()}
            found = {name: artifact for name, artifact in inputs.items() if artifact is not None}
            # Counts name nobody, so the card of deleted inputs may stay.
            if len(found) == len(inputs):
                config = artifact.manifest.config
                card = CardConfig.model_validate(config["card"], strict=False)
                listing = ListingConfig.model_validate(config["listing"], strict=False)
                _replace_files(run, artifact, build_data_card(found, card, listing))
        elif artifact.manifest.stage == "report":
            # Emptied before anything can fail, so that the images are gone in any case.
            _replace_files(run, artifact, {name: text for name, text in EMPTY.items() if artifact.has(name)})
    lines = []
    if "card" in current:
        publish_data_card(run)
        lines.append(f"rebuilt: {run.path(CARD)}")
    if storage.exists(run.path(REPORT)):
        _publish_files(run, {name: text for name, text in EMPTY.items() if storage.exists(run.path(name))})
        lines.append(_rebuild_report(run))
    return lines


def _rebuild_report(run: Run) -> str:
    artifacts = run.artifacts()
    if "report" not in artifacts:
        return f"emptied, since the newest run has no report yet: {run.path(REPORT)}"
    try:
        made = build_pages(artifacts, run.record(), run.events())
    except Exception as error:  # forgetting must finish even if an artifact is damaged
        return f"emptied, since it cannot be rebuilt ({type(error).__name__}: {error}): {run.path(REPORT)}"
    _replace_files(
        run, artifacts["report"], {name: text for name, text in made.items() if artifacts["report"].has(name)}
    )
    _publish_files(run, made)
    return f"rebuilt: {run.path(REPORT)}"


def _publish_files(run: Run, files: dict[str, str]) -> None:
    for name, text in files.items():
        storage.write_bytes(run.path(name), text.encode())


def _replace_files(run: Run, artifact: Artifact, files: dict[str, str]) -> None:
    for name, text in files.items():
        storage.write_bytes(artifact.path(name), text.encode())
    new = {name: describe_file(artifact.folder, name) for name in files if artifact.has(name)}
    if any(output not in artifact.manifest.outputs for output in new.values()):
        artifact.replace_outputs(new)
