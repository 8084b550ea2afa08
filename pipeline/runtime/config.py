"""Config section `cluster`: where a run executes, its parallelism, and the resources per stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dataprep.io.config import Config


class StageResources(Config):
    """Resources of one worker of a stage: an actor that processes shards, or a rank of a training group."""

    num_cpus: float | None = Field(
        None, ge=0, description="CPUs; default: 1 per actor, an equal share of the cluster per rank"
    )
    num_gpus: float | None = Field(
        None, ge=0, description="GPUs, may be a fraction; default: 1 for models if the cluster has (or can get) GPUs"
    )
    memory_gb: float | None = Field(None, gt=0, description="memory reserved on the node; default: none")
    resources: dict[str, float] = Field(
        default_factory=dict, description="custom resources of the node, such as {spot: 0.01} to run on spot nodes only"
    )
    ranks: int | None = Field(None, ge=1, description="ranks of a training group; default: cluster.ranks")
    max_actors: int | None = Field(None, ge=1, description="maximum number of actors; default: as many as fit")
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        "PACK", description="of a training group: PACK on few nodes or SPREAD over many; STRICT_ makes it a requirement"
    )


class ClusterConfig(Config):
    """Where and how wide a run executes. Results do not depend on it, so no fingerprint covers it."""

    address: str | None = Field(None, description="Ray address; default: RAY_ADDRESS, or a new local Ray")
    cpus: int | None = Field(None, ge=1, description="CPUs of a local Ray; default: all")
    object_store_mb: int = Field(256, ge=80, description="object store of a local Ray, in MB")
    ranks: int | None = Field(
        None, ge=1, description="ranks of a training stage; default: the cluster's GPUs; without any 2, or 1 on one CPU"
    )
    regroup_seconds: float = Field(
        300.0, gt=0, description="how long a training waits for lost machines before it goes on with fewer ranks"
    )
    stream: bool = Field(
        False,
        description="start a stage on the shards that its input has finished, instead of when all are: downloads, CPUs "
        "and GPUs are busy at the same time",
    )
    stream_lag: int = Field(
        4,
        ge=1,
        description="with `stream`: a stage pauses while this many of its finished shards, for each of its workers, "
        "wait for a stage that reads them",
    )
    retries: int = Field(2, ge=0, description="retries of a failed shard or training group")
    max_quarantined: int = Field(0, ge=0, description="failed shards that a stage tolerates")
    stages: dict[str, StageResources] = Field(
        default_factory=dict,
        description="resources per worker, by stage; `train` applies to every train.*",
    )

    def stage_resources(self, stage: str) -> StageResources:
        """Returns the configured resources of a worker of ``stage``."""
        configured = self.stages.get(stage) or (self.stages.get("train") if stage.startswith("train.") else None)
        return configured or StageResources()

    def stage_ranks(self, stage: str) -> int | None:
        """Returns the configured ranks of a training stage; None: as many as fit."""
        return self.stage_resources(stage).ranks or self.ranks
