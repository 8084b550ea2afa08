"""The data card of a run, gathered from the artifacts of its data stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from dataprep.card.config import CardConfig
from dataprep.card.croissant import build_croissant
from dataprep.card.facts import DataCounts, build_facts, count_shard
from dataprep.card.markdown import render_card
from dataprep.card.training_content import render_training_content
from dataprep.io import storage
from dataprep.listing.config import ListingConfig
from dataprep.pack_config import PackConfig
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run

CARD, FACTS = "datacard.md", "datacard.json"
CROISSANT, TRAINING_CONTENT = "croissant.json", "training_content.md"
PUBLISHED = (CARD, CROISSANT, TRAINING_CONTENT)  # copied to the run folder, which Croissant's file patterns start from
ALIGNED = ("download", "annotate", "select", "score")  # stages whose row-aligned tables are counted


def build_data_card(inputs: Mapping[str, Artifact], config: CardConfig, listing: ListingConfig) -> dict[str, str]:
    """Returns texts by file name: the card as Markdown and JSON, Croissant, and the summary of training content.

    ``listing`` says of the sources what their rows do not: weights and licences.
    """
    counts = DataCounts()
    counts.audit.expect_labels(inputs["score"].manifest.config.get("score", {}).get("labels", {}))
    tables = [{shard.id: shard.files["parquet"] for shard in inputs[stage].shards} for stage in ALIGNED]
    for shard in sorted(set.intersection(*(set(table) for table in tables))):
        with ExitStack() as stack:
            download, annotations, selection, scores = (
                stack.enter_context(storage.local_copy(table[shard])) for table in tables
            )
            count_shard(download, annotations, selection, counts, scores)
    sources = {name: source.model_dump() for name, source in listing.list_sources().items()}
    counted = build_facts(counts, sources, config)
    funnel = storage.read_json(inputs["select"].path("funnel.json"))
    artifacts = [_describe_artifact(artifact) for artifact in inputs.values()]
    whole = counted | {"funnel": funnel, "artifacts": artifacts}
    croissant = build_croissant(counted, funnel, _locate_stages(inputs), _read_encodings(inputs["pack"]))
    fetch = inputs["download"].manifest.config["download"]["fetch"]
    tokens = inputs["embed"].manifest.counters.get("tokens", 0)
    return {
        CARD: render_card(counted, funnel, artifacts),
        FACTS: _dump_json(whole),
        CROISSANT: _dump_json(croissant),
        TRAINING_CONTENT: render_training_content(counted, funnel, fetch, tokens),
    }


def _dump_json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _locate_stages(inputs: Mapping[str, Artifact]) -> dict[str, str]:
    """Returns the folders of the stages that hold the data, relative to the run folder."""
    found = {stage: inputs[stage].manifest for stage in ("download", "pack")}
    return {stage: f"stages/{stage}/{manifest.fingerprint}" for stage, manifest in found.items()}


def _read_encodings(pack: Artifact) -> dict[int, str]:
    """Returns the encoding of the pixels of each resolution."""
    config = PackConfig.model_validate(pack.manifest.config["pack"])
    return {size: config.encoding_of(size) for size in config.resolutions}


def publish_data_card(run: Run) -> None:
    """Copies the newest card to RUN, if there is one."""
    if card := run.artifacts().get("card"):
        for name in PUBLISHED:
            storage.write_bytes(run.path(name), storage.read_bytes(card.path(name)))


def _describe_artifact(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    lines = sorted((output.path, f"{output.sha256}  {output.path}\n") for output in manifest.outputs)
    return {
        "stage": manifest.stage,
        "fingerprint": manifest.fingerprint,
        "files": len(manifest.outputs),
        "bytes": sum(output.bytes for output in manifest.outputs),
        "sha256": hashlib.sha256("".join(line for _, line in lines).encode()).hexdigest(),
    }
