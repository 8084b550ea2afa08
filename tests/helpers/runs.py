"""A finished run made without Ray and without training.

Listing, download, annotations and pack are real, of a small list served over loopback HTTP. Scores, selection,
embeddings, models and samples only have the right format.
"""

from __future__ import annotations

import functools
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

from dataprep.annotate import annotate_shard
from dataprep.annotate_config import AnnotateConfig
from dataprep.card.config import CardConfig
from dataprep.download.config import DownloadConfig, FetchConfig
from dataprep.download.shard import download_shard
from dataprep.images.decode import read_shard_images
from dataprep.io import storage
from dataprep.io.parquet import read_table, write_table
from dataprep.listing.config import ListingConfig
from dataprep.listing.writer import write_listing
from dataprep.pack import pack_shard
from dataprep.pack_config import PackConfig
from dataprep.text import embed as embeddings
from eval.metrics.samples_table import SCHEMA as SAMPLES
from pipeline.config_loading import load_config
from pipeline.report.build import build_pages
from pipeline.report.data_card_files import CARD, FACTS, build_data_card
from pipeline.stages.base import StageConfig
from pipeline.stages.graph import list_stages
from pipeline.store.artifact import Artifact, Manifest, describe_file
from pipeline.store.run import Run
from tests.helpers.paths import ROOT

SHARD_ROWS = 5
ROWS = 13
DATA = ("listing", "download", "annotate", "score", "select", "pack", "embed")
VICTIM, COPY, DEAD = 7, 11, 3  # row 11 has the bytes of row 7 under another URL and caption
HOST = "pictures.test"


def picture(index: int) -> bytes:
    """Returns a JPEG that differs for each index."""
    noise = np.random.default_rng(index).integers(0, 255, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((96, 80), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def url(row: int) -> str:
    return f"http://{HOST}/{row:02d}.jpg"


def caption(row: int) -> str:
    return "short" if row == 5 else f"a zebra numbered {row} at noon"


@contextmanager
def serve(requests: list[str]) -> Iterator[dict[str, tuple[str, int]]]:
    """Serves row r's image at /r.jpg and records the requests; COPY has VICTIM's bytes, DEAD answers 404."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
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
    """A run folder that is filled stage by stage; ``name`` is part of every fingerprint."""

    def __init__(self, run: Run, name: str) -> None:
        self.run, self.name, self.artifacts = run, name, dict[str, Artifact]()

    def stage(
        self,
        stage: str,
        write: Callable[[Path], dict[str, int]],
        inputs: tuple[str, ...] = (),
        config: dict[str, Any] | None = None,
    ) -> Artifact:
        fingerprint = f"{stage.replace('.', '')}{self.name}"
        folder = Path(self.run.stage_folder(stage, fingerprint))
        folder.mkdir(parents=True)
        counters = write(folder)
        outputs = [describe_file(str(folder), name) for name in storage.list_files(str(folder))]
        known = {name: self.artifacts[name].manifest.fingerprint for name in inputs}
        config = smoke_configs()[stage].to_json() if config is None else config
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


@functools.cache
def smoke_configs() -> dict[str, StageConfig]:
    """Returns the config of every stage; training takes 9 steps of 4 samples."""
    loops = ("encoder.pretrain", "clip.train", "train.base")
    overrides = [f"{loop}.{key}" for loop in loops for key in ("steps=9", "batch_size=4")]
    config = load_config(str(ROOT / "configs" / "smoke.yaml"), overrides)
    return {stage.name: stage.config for stage in list_stages(config)}


def make_run(root: Path, table: Path, hosts: Mapping[str, tuple[str, int]], name: str = "one") -> Made:
    """Makes a run over the list at ``table`` (columns url, caption and others), from listing to report."""
    made = Made(Run(str(root)), name)
    made.run.event("run_started", command="imagen-ray run", todo=[])
    listing = ListingConfig(source="table", path=str(table), rows_per_shard=SHARD_ROWS)
    listed = {"listing": listing.model_dump(mode="json"), "seed": 0}
    made.stage("listing", lambda out: write_listing(listing, 0, out), config=listed)
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

        made.stage(stage, write, inputs)

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
    made.stage("encoder", _model, ("download",))
    made.stage("clip", _model, ("download", "encoder"))
    each("score", _scores, "download")
    each("select", _select, "download", "annotate", "score")
    _verdicts(made)
    each("pack", _pack, "download", "select")
    each("embed", _embed, "pack")
    made.stage("card", lambda out: _card(made, out), DATA)
    made.stage("train.base", _stage, ("pack", "embed"))
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
    missing = vectors.count(None)
    return {"rows": table.num_rows, "scored": table.num_rows - missing, "without_image": missing}


def _select(out: Path, files: dict[str, str]) -> dict[str, int]:
    """Keeps downloaded pairs with captions of two or more words; every fourth is for validation."""
    rows = read_table(files["annotate.parquet"], "annotations", ["key", "ok", "caption_words"]).to_pylist()
    reasons = ["downloaded: no image" if not row["ok"] else None for row in rows]
    reasons = [
        "caption_words: too few" if r["caption_words"] < 2 and not w else w for r, w in zip(rows, reasons, strict=True)
    ]
    splits = [None if reason else "validation" if i % 4 == 3 else "train" for i, reason in enumerate(reasons)]
    columns = {"key": [row["key"] for row in rows], "keep": [reason is None for reason in reasons]}
    texts = {"reason": reasons, "split": splits, "duplicate_of": [None] * len(rows)}
    table = pa.table(columns | {name: pa.array(values, pa.string()) for name, values in texts.items()})
    write_table(table, out, "selection")
    kept = sum(columns["keep"])
    dropped = {
        name: sum((reason or "").startswith(name) for reason in reasons) for name in ("downloaded", "caption_words")
    }
    counters = {f"dropped_{name}": count for name, count in dropped.items()}
    return {"rows": len(rows), "kept": kept, "dropped": len(rows) - kept, **counters}


def _verdicts(made: Made) -> None:
    """Writes the selection's JSON files and commits its manifest with them."""
    artifact = made.artifacts["select"]
    tables = [read_table(path, "selection") for path in artifact.files()]
    reasons = [reason for table in tables for reason in table["reason"].to_pylist()]
    left, funnel = len(reasons), list[dict[str, Any]]()
    for name, why in (("downloaded", "no image"), ("caption_words", "too few")):
        dropped = reasons.count(f"{name}: {why}")
        funnel.append({"filter": name, "in": left, "dropped": dropped, "kept": left - dropped, "reason": why})
        left -= dropped
    storage.write_json(artifact.path("funnel.json"), funnel)
    storage.write_json(artifact.path("quality.json"), None)
    rows = [
        (shard.id, key)
        for shard, table in zip(artifact.shards, tables, strict=True)
        for key in table["key"].to_pylist()
    ]
    examples = {
        step["filter"]: [
            {"shard": shard, "key": key}
            for (shard, key), reason in zip(rows, reasons, strict=True)
            if (reason or "").startswith(step["filter"] + ":")
        ]
        for step in funnel
    }
    storage.write_json(artifact.path("examples.json"), examples)
    manifest = artifact.manifest
    outputs = [
        describe_file(artifact.folder, name) for name in storage.list_files(artifact.folder) if name != "manifest.json"
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
    return {"rows": len(values), "captions": len(values)}


def embedding(caption: str) -> bytes:
    """Returns bytes that represent a caption's embedding and differ for each caption."""
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
    """Writes a model with sample grids: images that turn from black to white, above white ones."""
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
    metrics: dict[str, Any] = {"images": 1, "candidates": 1, "clip_score": 0.5, "composition": {}}
    metrics["clip_score_interval"] = {"low": 0.4, "high": 0.6}
    storage.write_json(str(out / "metrics.json"), metrics | {"composition_table": [], "composition_first": {}})
    return {"images": 1}


def _card(made: Made, out: Path) -> dict[str, int]:
    inputs = {stage: made.artifacts[stage] for stage in DATA}
    listing = ListingConfig.model_validate(inputs["listing"].manifest.config["listing"])
    for name, text in build_data_card(inputs, CardConfig(), listing).items():
        (out / name).write_text(text)
    assert {CARD, FACTS} <= {path.name for path in out.iterdir()}
    return {}


def _report(made: Made, out: Path) -> dict[str, int]:
    for name, text in build_pages(made.artifacts, made.record()).items():
        (out / name).write_text(text)
    return {}


def stored_image(artifact: Artifact, key: str) -> bytes:
    """Returns a sample's image from the tar of the download."""
    shard = artifact.shards[int(key[:5])]
    return dict(read_shard_images(shard.files["tar"]))[key]
