"""A finished run without Ray and without training: real listing, download, annotations, selection and pack of a small
list over loopback HTTP; scores, embeddings, models and samples that are only shaped like real ones."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dataprep import embed as embeddings
from dataprep import storage
from dataprep.annotate import AnnotateConfig, annotate_shard
from dataprep.card import CardConfig
from dataprep.decode import read_shard_images
from dataprep.download import DownloadConfig, download_shard
from dataprep.fetch import FetchConfig
from dataprep.pack import PackConfig, pack_shard
from dataprep.schema import read_table, write_table
from dataprep.sources import ListingConfig, write_listing
from pipeline.config import load_config
from pipeline.report.build import pages
from pipeline.report.card import CARD, FACTS, card_files
from pipeline.steps.judge import SCHEMA as SAMPLES
from pipeline.steps.page import DATA
from pipeline.store import Artifact, Manifest, Run, describe

ROOT = Path(__file__).resolve().parents[2]
SHARD_ROWS = 5
ROWS = 13
VICTIM, COPY, DEAD = 7, 11, 3  # row 11 has the bytes of row 7 under a URL and a caption of its own
HOST = "pictures.test"


def picture(index: int) -> bytes:
    """A JPEG unlike every other."""
    noise = np.random.default_rng(index).integers(0, 255, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((96, 80), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def url(row: int) -> str:
    return f"http://{HOST}/{row:02d}.jpg"


def caption(row: int) -> str:
    return "short" if row == 5 else f"a zebra numbered {row} at noon"


@contextmanager
def serve(asked: list[str]) -> Iterator[dict[str, tuple[str, int]]]:
    """Row r's picture at /r.jpg; the copy has the victim's bytes, the dead link answers 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            row = int(self.path[1:3]) if self.path[1:3].isdecimal() else DEAD
            data = picture(VICTIM if row == COPY else row)
            self.send_response(404 if row == DEAD else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield {HOST: ("127.0.0.1", server.server_address[1])}
    server.shutdown()
    server.server_close()
    thread.join()


def write_list(path: Path, rows: int = ROWS) -> None:
    lines = ["url,caption,LICENSE,note"]
    lines += [f"{url(row)},{caption(row)},CC-{row % 2},{'rare-' if row == VICTIM else 'n'}{row}" for row in range(rows)]
    path.write_text("\n".join(lines) + "\n")


class Made:
    """A run folder that is filled stage by stage; ``name`` stands in every fingerprint."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name, self.artifacts = run, name, dict[str, Artifact]()

    def stage(
        self, stage: str, write: Callable[[Path], dict[str, int]], inputs: tuple[str, ...] = (), **config: Any
    ) -> Artifact:
        fingerprint = f"{stage.replace('.', '')}{self.name}"
        folder = Path(self.run.stage_folder(stage, fingerprint))
        folder.mkdir(parents=True)
        counters = write(folder)
        outputs = [describe(str(folder), name) for name in storage.list_files(str(folder))]
        known = {name: self.artifacts[name].manifest.fingerprint for name in inputs}
        manifest = Manifest(stage, fingerprint, known, config, outputs, counters, 1.0, {"python": "3.11"})
        self.artifacts[stage] = self.run.commit(manifest)
        return self.artifacts[stage]

    def record(self) -> dict[str, Any]:
        stages = {
            name: {"fingerprint": artifact.manifest.fingerprint, "state": "done", "seconds": 1.0}
            for name, artifact in self.artifacts.items()
        }
        config = load_config(str(ROOT / "configs" / "smoke.yaml"), [f"run={self.run.root}"]).model_dump(mode="json")
        return {
            "run": self.run.root,
            "status": "finished",
            "started": "2026-01-01T00:00:00.000+00:00",
            "finished": "2026-01-01T00:01:00.000+00:00",
            "command": "imagen-ray run",
            "seed": 0,
            "git_commit": None,
            "versions": {},
            "config": config,
            "stages": stages,
        }


def make_run(root: Path, table: Path, hosts: Mapping[str, tuple[str, int]], name: str = "one") -> Made:
    """A run over the list at ``table`` (columns url, caption and others), from listing to report."""
    made = Made(Run(str(root)), name)
    listing = ListingConfig(source="table", path=str(table), rows_per_shard=SHARD_ROWS)
    made.stage("listing", lambda out: write_listing(listing, 0, out), listing=listing.model_dump(mode="json"), seed=0)
    config = DownloadConfig(fetch=FetchConfig(retries=0, allow_private_addresses=True), image_size=64)

    def each(stage: str, work: Callable[[Path, dict[str, str]], dict[str, int]], *inputs: str) -> None:
        def write(out: Path) -> dict[str, int]:
            total: dict[str, int] = {}
            for shard in made.artifacts[inputs[0]].shards:
                files = {
                    f"{name}.{extension}": str(Path(made.artifacts[name].folder) / f"{shard.id:05d}.{extension}")
                    for name in inputs
                    for extension in ("parquet", "tar")
                }
                for key, count in work(out / f"{shard.id:05d}.parquet", files).items():
                    total[key] = total.get(key, 0) + count
            return total

        settings = {"encoder": {"encoder": {"pretrain": {"steps": 3}}}}.get(stage, {})
        made.stage(stage, write, inputs, **settings)

    each(
        "download",
        lambda out, f: download_shard(f["listing.parquet"], int(out.stem), out.parent, config, hosts),
        "listing",
    )
    each(
        "annotate",
        lambda out, f: annotate_shard(f["download.tar"], f["download.parquet"], out, AnnotateConfig()),
        "download",
    )
    made.stage("encoder", _model, ("download",), encoder={"model": None, "pretrain": {"steps": 9, "batch_size": 4}})
    clip = {"steps": 9, "batch_size": 4}
    made.stage("clip", _model, ("download", "encoder"), **{"clip.model": None, "clip.train": clip})
    each("score", _scores, "download")
    each("select", _select, "download", "annotate", "score")
    _verdicts(made)
    each("pack", _pack, "download", "select")
    each("embed", _embed, "pack")
    made.stage("card", lambda out: _card(made, out), DATA, card=CardConfig().model_dump())
    made.stage("train.base", _stage, ("pack", "embed"), **{"train.base": {"steps": 9, "batch_size": 4}})
    made.stage("sample", _samples, ("train.base", "encoder", "clip"))
    made.stage("evaluate", lambda out: _metrics(made, out), ("sample", "pack"))
    inputs = tuple(made.artifacts)
    made.stage("report", lambda out: _report(made, out), inputs)
    storage.write_json(made.run.path("run.json"), made.record())
    for name, stage in (
        ("report.html", "report"),
        ("report.md", "report"),
        ("metrics.json", "evaluate"),
        (CARD, "card"),
    ):
        storage.write_bytes(made.run.path(name), storage.read_bytes(made.artifacts[stage].path(name)))
    made.run.event("run_finished")
    return made


def _scores(out: Path, files: dict[str, str]) -> dict[str, int]:
    table = read_table(files["download.parquet"], "download", ["key", "sha256"])
    vectors = [bytes.fromhex(image) if image else None for image in table["sha256"].to_pylist()]
    found = [None if vector is None else vector[0] / 255 for vector in vectors]
    columns = {"clip_similarity": pa.array(found, pa.float32()), "clip_embedding": pa.array(vectors, pa.binary(32))}
    write_table(pa.table({"key": table["key"], **columns}), out, "scores")
    return {"rows": table.num_rows}


def _select(out: Path, files: dict[str, str]) -> dict[str, int]:
    """Keeps what was downloaded, but for captions of one word; every fourth for validation."""
    rows = read_table(files["annotate.parquet"], "annotations", ["key", "ok", "caption_words"]).to_pylist()
    reasons = ["downloaded: no image" if not row["ok"] else None for row in rows]
    reasons = [
        "caption_words: too few" if r["caption_words"] < 2 and not w else w for r, w in zip(rows, reasons, strict=True)
    ]
    splits = [None if reason else "validation" if i % 4 == 3 else "train" for i, reason in enumerate(reasons)]
    columns = {"key": [row["key"] for row in rows], "keep": [reason is None for reason in reasons]}
    table = pa.table(columns | {"reason": pa.array(reasons, pa.string()), "split": pa.array(splits, pa.string())})
    write_table(table, out, "selection")
    kept = sum(columns["keep"])
    return {"rows": len(rows), "kept": kept, "dropped": len(rows) - kept}


def _verdicts(made: Made) -> None:
    """The selection's own JSON files, and its manifest with them."""
    artifact = made.artifacts["select"]
    tables = [read_table(path, "selection") for path in artifact.files()]
    reasons = [reason for table in tables for reason in table["reason"].to_pylist()]
    left, funnel = len(reasons), []
    for name, why in (("downloaded", "no image"), ("caption_words", "too few")):
        dropped = reasons.count(f"{name}: {why}")
        funnel.append({"filter": name, "in": left, "dropped": dropped, "kept": left - dropped, "reason": why})
        left -= dropped
    storage.write_json(artifact.path("funnel.json"), funnel)
    storage.write_json(artifact.path("quality.json"), None)
    manifest = artifact.manifest
    outputs = [
        describe(artifact.folder, name) for name in storage.list_files(artifact.folder) if name != "manifest.json"
    ]
    values = {name: getattr(manifest, name) for name in ("stage", "fingerprint", "inputs", "config", "counters")}
    made.artifacts["select"] = made.run.commit(Manifest(**values, outputs=outputs, seconds=1.0, versions={}))


def _pack(out: Path, files: dict[str, str]) -> dict[str, int]:
    config = PackConfig(resolutions=(16, 32), raw_up_to=16)
    return pack_shard(files["download.tar"], files["download.parquet"], files["select.parquet"], out, config)


def _embed(out: Path, files: dict[str, str]) -> dict[str, int]:
    pack = read_table(files["pack.parquet"], "pack", ["key", "caption"])
    values = [embedding(caption) for caption in pack["caption"].to_pylist()]
    columns = {"length": [2] * len(values), "dim": [8] * len(values), "codec": ["float16"] * len(values)}
    columns |= {"embedding": values, "scale": [None] * len(values)}
    write_table(
        pa.table({"key": pack["key"], "caption": pack["caption"], **columns}, schema=embeddings.SCHEMA),
        out,
        "embeddings",
    )
    return {"captions": len(values)}


def embedding(caption: str) -> bytes:
    """What stands for a caption's embedding: bytes that no other caption has."""
    return np.random.default_rng(list(caption.encode())).standard_normal(16).astype("<f2").tobytes()


def _model(out: Path) -> dict[str, int]:
    (out / "weights.bin").write_bytes(b"weights")
    (out / "tensorboard").mkdir()
    (out / "tensorboard" / "events.out.tfevents.1").write_bytes(b"scalars alone")
    rows: list[dict[str, Any]] = [
        {"step": step, "loss": 1 / step, "samples_per_second": 10.0, "memory_mb": 5.0} for step in range(1, 10)
    ]
    for row in rows[2::3]:
        row |= {"validation_loss": row["loss"]} | {
            f"validation_loss_noise_{k}of4": k / row["step"] for k in (1, 2, 3, 4)
        }
    (out / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"parameters": 7, "step": 9}


def _stage(out: Path) -> dict[str, int]:
    """A model that drew grids on the way: black pictures that become white ones, above white ones."""
    (out / "samples").mkdir()
    for step in (3, 6, 9):
        grid = np.full((8, 16, 3), 255, np.uint8)
        grid[:4] = 255 * step // 9
        Image.fromarray(grid).save(out / "samples" / f"step-{step:08d}.png")
    return _model(out)


def _samples(out: Path) -> dict[str, int]:
    png = io.BytesIO()
    Image.new("RGB", (16, 16), "red").save(png, "PNG")
    row = {"role": "show", "prompt": "a red circle", "split": "user", "language": "en", "seed": 0, "index": 0}
    row |= {"chosen": True, "stage": "base", "size": 16, "png": png.getvalue(), "clip_score": 0.5}
    rows = [row, row | {"role": "evaluate"}]
    write_table(pa.Table.from_pylist(rows, schema=SAMPLES), out / "00000.parquet", "samples")
    return {"images": 2}


def _metrics(made: Made, out: Path) -> dict[str, int]:
    (out / "features").mkdir()
    for shard in made.artifacts["download"].shards:
        rows = read_table(shard.files["parquet"], "download", ["key", "sha256"]).to_pylist()
        features = {"id": [row["key"] for row in rows], "image": [bytes.fromhex(row["sha256"] or "") for row in rows]}
        write_table(pa.table(features), out / "features" / f"{shard.id:05d}.parquet", "features")
    metrics = {"images": 1, "candidates": 1, "clip_score": 0.5, "composition": {}}
    storage.write_json(str(out / "metrics.json"), metrics | {"composition_table": [], "composition_first": {}})
    return {"images": 1}


def _card(made: Made, out: Path) -> dict[str, int]:
    for name, text in card_files({stage: made.artifacts[stage] for stage in DATA}, CardConfig()).items():
        (out / name).write_text(text)
    assert {CARD, FACTS} <= {path.name for path in out.iterdir()}
    return {}


def _report(made: Made, out: Path) -> dict[str, int]:
    for name, text in pages(made.artifacts, made.record()).items():
        (out / name).write_text(text)
    return {}


def stored_image(artifact: Artifact, key: str) -> bytes:
    """The image of a sample in the tar of the download."""
    shard = artifact.shards[int(key[:5])]
    return dict(read_shard_images(shard.files["tar"]))[key]
