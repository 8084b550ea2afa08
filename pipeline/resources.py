"""What a stage asks of the cluster, as the user says it; `pipeline.placement` fills in what is left open."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprep.schema import Config


class StageResources(Config):
    """What one worker of a stage needs: an actor that works on shards, or a rank of a training group."""

    num_cpus: float | None = Field(
        None, ge=0, description="CPUs; default: 1 for an actor, an even part of what the cluster has for a rank"
    )
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs, or a part of one; default: 1 for models where the cluster has (or can get) GPUs"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory set aside on the node; default: none is")
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources of the node, such as {spot: 0.01} to stay on such nodes"
    )
    max_actors: int | None = Field(None, ge=1, description="actors at most; default: what the cluster has room for")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="of a training group: close together, for its traffic, or spread; STRICT_ insists"
    )
