"""``imagen-ray forget``: removes samples from every artifact of a run, finished or not, and from all later runs.

First writes RUN/forgotten.json: hashes of URLs and images, the keys of their rows, and the stages that learned from
them. Then redacts file after file atomically, each artifact's manifest last. Everything follows from forgotten.json and
the files, so after a kill at any point the same command completes the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from dataprep.io import storage
from dataprep.io.errors import UserError
from dataprep.io.redact import FORGOTTEN_FILE, Forgotten
from dataprep.io.wording import count_of
from pipeline.lineage.forgotten_rows import count_current_rows, decide_forgotten, find_keys, hash_targets
from pipeline.lineage.redact_artifacts import delete_sample_files, redact_folder, redact_texts
from pipeline.lineage.stage_folders import LISTED, list_stage_folders
from pipeline.report.regenerate import rebuild_pages
from pipeline.store.lease import lock_run
from pipeline.store.run import Run


@dataclass
class ForgetResult:
    """What `forget_samples` did, or would do."""

    samples: int  # rows of the newest list that are forgotten, by this and earlier calls
    forgotten: Forgotten
    changes: list[tuple[str, int, int]] = field(default_factory=list)  # artifact, rows, files
    absent: list[str] = field(default_factory=list)  # URLs that are in no list of the run; recorded all the same
    pages: list[str] = field(default_factory=list)  # a line per page that was rebuilt or emptied
    stale: list[str] = field(default_factory=list)  # files with figures of models that learned from the samples


def forget_samples(folder: str, targets: Sequence[str], dry_run: bool = False) -> ForgetResult:
    """Forgets the samples with these URLs or keys, and every sample whose stored image has the same bytes.

    Without targets, completes an interrupted call.

    Raises:
        UserError: no run, a driver holds the run, or an unknown key; before anything is written.
    """
    run = Run(folder)
    run.record()
    with nullcontext() if dry_run else lock_run(run):
        before = Forgotten.read(run.path(FORGOTTEN_FILE))
        if not targets and before == Forgotten():
            raise UserError(f"{run.root}: nothing is forgotten in this run yet; give the URLs or keys of samples")
        folders = list(list_stage_folders(run))
        forgotten, absent = decide_forgotten(folders, before, hash_targets(run, targets))
        result = ForgetResult(count_current_rows(run, forgotten), forgotten, absent=absent)
        if not dry_run:
            forgotten.write(run.path(FORGOTTEN_FILE))
        for item in sorted(folders, key=lambda item: LISTED.index(item.stage) if item.stage in LISTED else len(LISTED)):
            keys = find_keys(item, folders, forgotten)
            rows, files = redact_folder(run, item, keys, dry_run) if keys else (0, 0)
            if files:
                result.changes.append((item.name, rows, files))
        result.changes += delete_sample_files(run, folders, forgotten, dry_run)
        current = run.artifacts()
        trained = {(item["stage"], item["fingerprint"]) for item in forgotten.trained}
        if any((name, artifact.manifest.fingerprint) in trained for name, artifact in current.items()):
            result.stale = [name for name in ("metrics.json",) if storage.exists(run.path(name))]
        if not dry_run and forgotten.rows:
            redact_texts(run, folders, forgotten)  # before the pages, which show events and failure reasons
            result.pages = rebuild_pages(run, [item.artifact for item in folders if item.artifact])
            run.event("forgotten", samples=result.samples, artifacts=len(result.changes))
    return result


def render_forget_result(result: ForgetResult, dry_run: bool) -> Group:
    """Returns what was forgotten, from which artifacts, and what cannot be undone, for the terminal."""
    count = result.samples
    are = "would be" if dry_run else "is" if count == 1 else "are"
    lines: list[Any] = [f"{count_of(count, 'row')} {are} forgotten, copies with the same bytes included"]
    lines += [f"not in this run, recorded for later runs: {url}" for url in result.absent]
    table = Table("artifact", "rows", "files", box=None)
    for name, changed, files in result.changes:
        table.add_row(name, str(changed), str(files))
    lines += [table] if result.changes else ["no artifact holds any of them"]
    lines += result.pages
    if result.forgotten.trained:
        lines.append(
            "Trained on them, which cannot be undone (weights, optimizer states, a tokenizer trained on captions):"
        )
        lines += [
            f"  stages/{item['stage']}/{item['fingerprint']} ({item['state']})" for item in result.forgotten.trained
        ]
        lines.append("  `imagen-ray run` retrains without them; then delete these folders.")
    lines += [f"stale, figures of such models: {name}" for name in result.stale]
    return Group(*[Text(line) if isinstance(line, str) else line for line in lines])
