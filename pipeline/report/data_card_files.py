"""The data card of a run, gathered from the artifacts of its data stages."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from dataprep.data_card import DataCounts, build_facts, count_shard, render_card
from dataprep.data_card_config import CardConfig
from dataprep.io import storage
from pipeline.store.artifact import Artifact
from pipeline.store.run import Run

CARD, FACTS = "datacard.md", "datacard.json"
ALIGNED = ("download", "annotate", "select")  # stages whose row-aligned tables are counted


def build_data_card(inputs: Mapping[str, Artifact], config: CardConfig | Mapping[str, Any]) -> dict[str, str]:
    """Returns the card by file name: Markdown, and the same facts as JSON."""
    config = config if isinstance(config, CardConfig) else CardConfig.model_validate(config)
    counts = DataCounts()
    tables = [{shard.id: shard.files["parquet"] for shard in inputs[stage].shards} for stage in ALIGNED]
    for shard in sorted(set.intersection(*(set(table) for table in tables))):
        with ExitStack() as stack:
            download, annotations, selection = (stack.enter_context(storage.local_copy(t[shard])) for t in tables)
            count_shard(download, annotations, selection, counts)
    counted = build_facts(counts, inputs["listing"].manifest.config["listing"], config)
    funnel = storage.read_json(inputs["select"].path("funnel.json"))
    artifacts = [_describe_artifact(artifact) for artifact in inputs.values()]
    whole = counted | {"funnel": funnel, "artifacts": artifacts}
    return {
        CARD: render_card(counted, funnel, artifacts),
        FACTS: json.dumps(whole, indent=2, ensure_ascii=False) + "\n",
    }


def publish_data_card(run: Run) -> None:
    """Copies the newest card to RUN, if there is one."""
    if card := run.artifacts().get("card"):
        storage.write_bytes(run.path(CARD), storage.read_bytes(card.path(CARD)))


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
