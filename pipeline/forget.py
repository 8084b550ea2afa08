"""``imagen-ray forget``: samples leave every artifact of a run, finished or not, and no later run takes them up again.

First RUN/forgotten.json is written: hashes of URLs and images, where their rows stand, and what had learned from them.
Then file after file is redacted and replaced atomically, and each artifact's manifest last. All of it is a function of
forgotten.json and what is on the disk, so a kill at any point costs nothing: the same command goes on to the end.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dataprep import storage
from dataprep.redact import FORGOTTEN_FILE, Forgotten, redact_parquet, redact_tar, url_hash
from dataprep.schema import SHARD_DIGITS, UserError, sample_key, split_key
from pipeline.lease import lock
from pipeline.report.again import redo_pages
from pipeline.rewrite import update_manifest
from pipeline.store import BATCH, MANIFEST, MARKERS, SHARD_NAME, Artifact, Manifest, Output, Run, describe
from pipeline.trace import find, read_columns

LISTED = ("listing", "download")  # the stages whose rows carry the URL
LEARNING = re.compile(r"encoder|clip|train\..+")
PNG = b"\x89PNG\r\n\x1a\n"
SHOWING = re.compile(r"tfevents|^samples/.+\.png$|^features/.+\.parquet$")
URL = re.compile(rb"https?://[^\s\"'<>\\]+")


@dataclass(frozen=True)
class Found:
    """A stage's folder in the run; ``artifact`` is None where the stage was not finished there."""

    stage: str
    fingerprint: str
    files: list[str]  # relative to the folder
    artifact: Artifact | None

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.fingerprint}"


@dataclass
class Outcome:
    """What was done, or would be."""

    samples: int  # rows of the newest list that are forgotten, by this call and by earlier ones
    told: Forgotten
    changes: list[tuple[str, int, int]] = field(default_factory=list)  # artifact, rows, files
    absent: list[str] = field(default_factory=list)  # URLs that no list of the run has: remembered all the same
    pages: list[str] = field(default_factory=list)  # a line each: made again, or emptied
    stale: list[str] = field(default_factory=list)  # figures of models that had learned from the samples


def forget(folder: str, targets: Sequence[str], dry_run: bool = False) -> Outcome:
    """Forgets the samples with these URLs or keys, and every sample whose stored image has the same bytes.

    Without targets, what an earlier call began is brought to its end.

    Raises:
        UserError: no run, a run at work, an unknown key; before anything is written.
    """
    run = Run(folder)
    run.record()
    with nullcontext() if dry_run else lock(run):
        before = Forgotten.read(run.path(FORGOTTEN_FILE))
        if not targets and before == Forgotten():
            raise UserError(f"{run.root}: nothing was forgotten here yet; give the URLs or keys of samples")
        places = list(scan(run))
        told, absent = _decide(run, places, before, _seeds(run, targets))
        outcome = Outcome(_current_rows(run, told), told, absent=absent)
        if not dry_run:
            told.write(run.path(FORGOTTEN_FILE))
        for place in sorted(places, key=lambda place: LISTED.index(place.stage) if place.stage in LISTED else 9):
            keys = _keys(place, places, told)
            rows, files = _redact(run, place, keys, dry_run) if keys else (0, 0)
            if files:
                outcome.changes.append((place.name, rows, files))
        outcome.changes += _drop_pictures(run, places, told, dry_run)
        current = run.artifacts()
        learned = {(item["stage"], item["fingerprint"]) for item in told.trained}
        if any((name, artifact.manifest.fingerprint) in learned for name, artifact in current.items()):
            outcome.stale = [name for name in ("metrics.json",) if storage.exists(run.path(name))]
        if not dry_run and told.rows:
            _clean_texts(run, places, told)  # before the pages, which show events and reasons
            outcome.pages = redo_pages(run, [place.artifact for place in places if place.artifact])
            run.event("forgotten", samples=outcome.samples, artifacts=len(outcome.changes))
    return outcome


def scan(run: Run) -> Iterator[Found]:
    """Every folder of every stage, under whatever fingerprint."""
    root = run.path("stages")
    files: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in storage.list_files(root) if storage.exists(root) else []:
        stage, _, rest = name.partition("/")
        fingerprint, _, inner = rest.partition("/")
        files[stage, fingerprint].append(inner)
    for (stage, fingerprint), names in sorted(files.items()):
        yield Found(stage, fingerprint, names, run.artifact(stage, fingerprint))


# ---------------------------------------------------------------------------------------------- which samples


def _seeds(run: Run, targets: Sequence[str]) -> dict[str, str]:
    """Hash of the URL -> the target that it was given by. A key stands for the URL of its row in the newest list."""
    artifacts = run.artifacts()
    seeds = {}
    for target in targets:
        if "://" in target:
            seeds[url_hash(target)] = target
            continue
        shard, row = find(run, artifacts, target)[0]  # a file's name in a folder, or a key
        files = {item.id: item.files for item in (artifacts.get("download") or artifacts["listing"]).shards}
        url = read_columns(files[shard]["parquet"], ["url"])["url"][row].as_py()
        if url:
            seeds[url_hash(url)] = target
        elif not any(target in keys for keys in Forgotten.read(run.path(FORGOTTEN_FILE)).rows.values()):
            raise UserError(
                f"{target}: this row has no URL to be remembered by; take it out of the list, and run again"
            )
    return seeds


def _decide(
    run: Run, places: Sequence[Found], before: Forgotten, seeds: Mapping[str, str]
) -> tuple[Forgotten, list[str]]:
    """What is forgotten from now on, and the given URLs that the run does not have.

    From the seeds to their stored images, from those to every row with the same bytes, and to the URLs of these rows.
    """
    urls, images = set(before.urls) | set(seeds), set(before.images)
    lists = [place for place in places if place.stage in LISTED and place.artifact]
    images |= {image for row in _rows(lists) if row.url in urls and (image := row.image)}
    urls |= {row.url for row in _rows(lists) if row.url and row.image in images}
    rows: dict[str, set[str]] = defaultdict(set, {name: set(keys) for name, keys in before.rows.items()})
    pictured: dict[str, set[str]] = defaultdict(set)
    present = set()
    for row in _rows(lists):
        if row.url in urls or row.image in images:
            rows[row.place].add(row.key)
            present.add(row.url)
            if row.image:
                pictured[row.place].add(row.key)
    known = {(item["stage"], item["fingerprint"]): item for item in before.trained}
    for item in _learned(places, pictured, rows):
        known.setdefault((item["stage"], item["fingerprint"]), item)
    trained = [known[name] for name in sorted(known)]
    told = Forgotten(frozenset(urls), frozenset(images), {name: sorted(keys) for name, keys in rows.items()}, trained)
    return told, [target for seed, target in seeds.items() if seed not in present | before.urls]


@dataclass(frozen=True)
class _Row:
    place: str
    key: str
    url: str  # hash, empty for a row without one
    image: str | None


def _rows(lists: Sequence[Found]) -> Iterator[_Row]:
    """Every row of the listings and downloads."""
    for place in lists:
        assert place.artifact is not None
        for shard in place.artifact.shards:
            table = read_columns(shard.files["parquet"], ["url", "sha256"])
            images = table["sha256"].to_pylist() if "sha256" in table.column_names else [None] * table.num_rows
            # A listing's own column of that name is the source's: the hash of what lies on the web.
            images = images if place.stage == "download" else [None] * table.num_rows
            for row, (url, image) in enumerate(zip(table["url"].to_pylist(), images, strict=True)):
                key = sample_key(shard.id, row)
                yield _Row(place.name, key, url_hash(url) if url else "", image)


def _learned(
    places: Sequence[Found], pictured: Mapping[str, set[str]], rows: Mapping[str, set[str]]
) -> Iterator[dict[str, str]]:
    """The stages that learn, and whose inputs hold a sample that is forgotten."""
    by_name = {place.name: place for place in places}
    for place in places:
        if not LEARNING.fullmatch(place.stage) or not any(rows.values()):
            continue
        if place.artifact is None:
            yield {"stage": place.stage, "fingerprint": place.fingerprint, "state": "unfinished, may have had them"}
            continue
        manifest = place.artifact.manifest
        if place.stage in ("encoder", "clip"):
            config = (manifest.config.get("encoder") or {}).get("pretrain") or manifest.config.get("clip.train")
            had = bool(config) and bool(pictured.get(f"download/{_download_of(manifest, by_name)}"))
        else:
            pack = by_name.get(f"pack/{manifest.inputs.get('pack')}")
            keys = pictured.get(f"download/{_download_of(manifest, by_name)}", set())
            had = pack is not None and pack.artifact is not None and _holds(pack.artifact, keys)
        if had:
            yield {"stage": place.stage, "fingerprint": place.fingerprint, "state": "finished"}


def _holds(pack: Artifact, keys: set[str]) -> bool:
    shards = {split_key(key)[0] for key in keys}
    files = [shard.files["parquet"] for shard in pack.shards if shard.id in shards]
    wanted = pa.array(sorted(keys), pa.string())
    return any(pa.compute.any(pa.compute.is_in(read_columns(path, ["key"])["key"], wanted)).as_py() for path in files)


def _download_of(manifest: Manifest, by_name: Mapping[str, Found]) -> str | None:
    """The fingerprint of the download that an artifact is made from, over however many stages."""
    if "download" in manifest.inputs:
        return manifest.inputs["download"]
    for stage, fingerprint in manifest.inputs.items():
        parent = by_name.get(f"{stage}/{fingerprint}")
        if parent and parent.artifact and (found := _download_of(parent.artifact.manifest, by_name)):
            return found
    return None


def _keys(place: Found, places: Sequence[Found], told: Forgotten) -> set[str]:
    """The keys that the forgotten samples have in an artifact."""
    everywhere = {key for keys in told.rows.values() for key in keys}
    if place.artifact is None:
        return everywhere  # its inputs are not known: shards that it does again cost little
    if place.stage in LISTED:
        return set(told.rows.get(place.name, ()))
    source = _download_of(place.artifact.manifest, {place.name: place for place in places})
    # Where the folder of its download was deleted, every key that was ever theirs: rather one row too many.
    return set(told.rows.get(f"download/{source}", () if source else everywhere))


def _current_rows(run: Run, told: Forgotten) -> int:
    current = run.artifacts()
    names = [f"{stage}/{current[stage].manifest.fingerprint}" for stage in LISTED if stage in current]
    return max([len(told.rows.get(name, ())) for name in names], default=0)


# ---------------------------------------------------------------------------------------------- their files


def _redact(run: Run, place: Found, keys: set[str], dry_run: bool) -> tuple[int, int]:
    """Redacts the files of an artifact and its manifest; returns how many rows and files were concerned."""
    if place.artifact is None:
        return _drop(run, place, keys, dry_run)
    artifact, by_shard = place.artifact, defaultdict(set)
    for key in keys:
        by_shard[split_key(key)[0]].add(key)
    new: dict[str, Output] = {}
    most = files = 0
    for output in artifact.manifest.outputs:
        match = SHARD_NAME.match(output.path)
        if match is None or int(match[1]) not in by_shard:
            continue
        rows = _rewrite(artifact.path(output.path), int(match[1]), by_shard[int(match[1])], dry_run)
        files += rows > 0
        most += rows if match[2] == "parquet" else 0
        if not dry_run and (described := describe(artifact.folder, output.path)) != output:
            new[output.path] = described  # redacted now, or by a call that was killed before it came to the manifest
    if new:
        update_manifest(run, artifact, new, redacted=len(keys))
    return most, files


def _drop_pictures(run: Run, places: Sequence[Found], told: Forgotten, dry_run: bool) -> Iterator[tuple[str, int, int]]:
    """Deletes files that show samples without being aligned with the shards; what they were for is told elsewhere too.

    Yields the artifact, no rows, and how many files.
    """
    for place in places:
        showing = _showing(run, place, _keys(place, places, told), told)
        if showing:
            yield place.name, 0, len(showing)
        if dry_run:
            continue
        for name in showing:
            storage.remove(storage.join(run.stage_folder(place.stage, place.fingerprint), name))
        # Those too that a call deleted which was killed before it came to the manifest.
        kept = {*place.files} - {*showing}
        outputs = place.artifact.manifest.outputs if place.artifact else []
        gone = [output.path for output in outputs if SHOWING.search(output.path) and output.path not in kept]
        if gone and place.artifact:
            update_manifest(run, place.artifact, {}, gone)


def _showing(run: Run, place: Found, keys: set[str], told: Forgotten) -> list[str]:
    """Grids and TensorBoard files in which true images stand beside drawn ones, and features of validation images."""
    folder = run.stage_folder(place.stage, place.fingerprint)
    names = sorted(name for name in place.files if SHOWING.search(name))
    if place.stage == "evaluate":
        return [name for name in names if keys & {*read_columns(storage.join(folder, name), ["id"])["id"].to_pylist()}]
    learned = any((item["stage"], item["fingerprint"]) == (place.stage, place.fingerprint) for item in told.trained)
    return [name for name in names if learned and PNG in storage.read_bytes(storage.join(folder, name))]


def _rewrite(path: str, shard: int, keys: set[str], dry_run: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="imagen-ray-") as scratch, storage.local_copy(path) as local:
        target = Path(scratch) / Path(path).name
        tar = path.endswith(".tar")
        rows = redact_tar(local, target, keys) if tar else redact_parquet(local, target, shard, keys)
        if target.exists() and not dry_run:
            storage.publish(target, path)
    return rows


def _drop(run: Run, place: Found, keys: set[str], dry_run: bool) -> tuple[int, int]:
    """Deletes the shards of an unfinished artifact that may hold a sample: they are made again if it is resumed."""
    shards = {f"{split_key(key)[0]:0{SHARD_DIGITS}d}" for key in keys}
    files = [name for name in place.files if Path(name).name.partition(".")[0] in shards]
    files = [] if place.stage.startswith("train.") else files
    # A batch of markers would still say that such a shard is finished; each has its own marker beside.
    batches = [name for name in place.files if files and re.search(rf"{re.escape(MARKERS)}/{BATCH}", name)]
    for name in [*files, *batches] if not dry_run else []:
        storage.remove(storage.join(run.stage_folder(place.stage, place.fingerprint), name))
    return 0, len(files)


def _clean_texts(run: Run, places: Sequence[Found], told: Forgotten) -> None:
    """Takes forgotten URLs out of logs and reasons, and what kills left of unfinished writes away."""

    def without(match: re.Match[bytes]) -> bytes:
        found = match[0].decode("utf-8", "replace")
        return b"[forgotten]" if {url_hash(found), url_hash(found.rstrip(".,;:)]"))} & told.urls else match[0]

    names = [run.path(name) for name in ("run.json", "events.jsonl")]
    names += [place.artifact.path(MANIFEST) for place in places if place.artifact]
    for path in names:
        before = storage.read_bytes(path) if storage.exists(path) else b""
        after = URL.sub(without, before)
        if after != before:
            storage.write_bytes(path, after)
    fs, root = storage.filesystem(run.root)
    for name in fs.find(root):
        if str(name).endswith(".tmp"):  # the run's lock is held: nobody is writing it
            fs.rm_file(name)


# ---------------------------------------------------------------------------------------------- for a person


def render(outcome: Outcome, dry_run: bool) -> Group:
    """What was forgotten, where from, and what cannot be undone."""
    count = outcome.samples
    are = "would be" if dry_run else "is" if count == 1 else "are"
    rows = "row" if count == 1 else "rows"
    lines: list[Any] = [f"{count} {rows} {are} forgotten, copies with the same bytes included"]
    lines += [f"not in this run, remembered for later ones: {url}" for url in outcome.absent]
    table = Table("artifact", "rows", "files", box=None)
    for name, changed, files in outcome.changes:
        table.add_row(name, str(changed), str(files))
    lines += [table] if outcome.changes else ["no artifact holds anything of them"]
    lines += outcome.pages
    if outcome.told.trained:
        lines.append(
            "Learned from them, and cannot unlearn; weights, optimizer states, a tokenizer trained on captions:"
        )
        lines += [f"  stages/{item['stage']}/{item['fingerprint']} ({item['state']})" for item in outcome.told.trained]
        lines.append("  `imagen-ray run` trains anew without them; then delete these folders.")
    lines += [f"stale, figures of such models: {name}" for name in outcome.stale]
    return Group(*[Text(line) if isinstance(line, str) else line for line in lines])
