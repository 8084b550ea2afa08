"""What a stage is: one file in this package holds one `StageType` with everything that anyone needs to know of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import TYPE_CHECKING, Any, Self, cast, get_type_hints

from pydantic import ConfigDict, Field, ValidationError

from dataprep.io.config import Config
from dataprep.io.errors import UserError
from pipeline.runtime.context import Context
from pipeline.store.artifact import Artifact, Manifest

if TYPE_CHECKING:
    from pipeline.config import RunConfig


class Placement(Enum):
    """Where the work of a stage runs; decides what may run beside it. Not part of a fingerprint."""

    DRIVER = "in the driver"
    SHARDS = "in a pool of CPU workers"
    MODELS = "in a pool of workers with a model, on GPUs where there are any"
    GROUP = "in a training group"


class StageConfig(Config):
    """The part of a run's config that a stage sees, which is the part that its fingerprint covers.

    A field is named as the config's key, or its alias is the dotted key (see `config_key`).
    """

    model_config = ConfigDict(populate_by_name=True)

    @classmethod
    def from_run(cls, config: RunConfig, **given: Any) -> Self:
        """Returns the stage's part of ``config``; ``given`` are fields that no fixed key leads to."""
        keys = {name: field.alias or name for name, field in cls.model_fields.items()}
        values = {name: pick(config, key) for name, key in keys.items() if name not in given} | given
        # Constructed, not validated: these are parts of a validated config.
        return cast(Self, cls.model_construct(None, **values))

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Self:
        """Returns the config with which a finished stage ran; raises UserError where another version wrote it."""
        try:
            return cls.model_validate(manifest.config, strict=False)
        except ValidationError as error:
            where = f"stage {manifest.stage} ({manifest.fingerprint[:8]})"
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise UserError(
                f"{where}: its config cannot be read ({key}: {first['msg']}), another version of imagen-ray wrote it; "
                "run the config again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Returns config key -> value as JSON."""
        return self.model_dump(mode="json", by_alias=True)


def config_key(key: str) -> Any:
    """Declares the dotted key of the run's config that a `StageConfig` field is read from."""
    return Field(alias=key)


def pick(config: Config, key: str) -> Any:
    """Returns the value at a dotted key; a dict entry counts as a key."""
    value: Any = config
    for part in key.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """The artifacts that a stage reads: a field per input stage, named as the stage.

    A field of type ``Artifact | None`` is an input only where the stage's `StageType.optional` says so. A field of type
    ``dict[str, Artifact]`` takes every stage ``<field>.<name>``, such as ``train`` for the whole cascade.
    """

    @classmethod
    def names(cls, stages: Mapping[str, Any], optional: Callable[[str], bool]) -> tuple[str, ...]:
        """Returns the names of the input stages among ``stages``."""
        hints, found = get_type_hints(cls), list[str]()
        for item in fields(cls):
            if hints[item.name] is Artifact or (hints[item.name] == Artifact | None and optional(item.name)):
                found.append(item.name)
            elif hints[item.name] == dict[str, Artifact] and optional(item.name):
                found += [name for name in stages if name.startswith(f"{item.name}.")]
        return tuple(found)

    @classmethod
    def collect(cls, artifacts: Mapping[str, Artifact]) -> Self:
        """Returns the inputs out of the stage's artifacts by name."""
        hints, values = get_type_hints(cls), dict[str, Any]()
        for item in fields(cls):
            if hints[item.name] == dict[str, Artifact]:
                prefix = f"{item.name}."
                values[item.name] = {n.removeprefix(prefix): a for n, a in artifacts.items() if n.startswith(prefix)}
            else:
                values[item.name] = artifacts.get(item.name)
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class EveryStage(StageInputs):
    """The inputs of a stage that reads all stages before it in the list."""

    stages: Mapping[str, Artifact]

    @classmethod
    def names(cls, stages: Mapping[str, Any], optional: Callable[[str], bool]) -> tuple[str, ...]:
        """Returns the names of all stages so far."""
        return tuple(stages)

    @classmethod
    def collect(cls, artifacts: Mapping[str, Artifact]) -> Self:
        """Returns the artifacts as they are."""
        return cls(stages=artifacts)


class Rows(Enum):
    """How the rows of a stage's Parquet shards relate to the listing's rows."""

    NONE = "the stage has no rows of samples"
    ALIGNED = "row i of shard n is row i of shard n of the listing"
    KEPT = "the selected rows, found by their `key`"


@dataclass(frozen=True, kw_only=True)
class RowBalance:
    """How the counters of a stage account for every row: rows in = rows out + rows by reason.

    `pipeline.lineage.row_balance` checks it in a finished run.
    """

    rows: str = "rows"  # counter of the rows in
    outcomes: tuple[str, ...] = ()  # counters that add up to it; "dropped_*" stands for all that begin so
    written: str | None = None  # counter of the rows in the stage's shard tables
    equal: Mapping[str, str] = field(default_factory=dict)  # counter -> counter of an input, as "download.rows"


@dataclass(frozen=True)
class TraceView:
    """What ``imagen-ray trace`` shows of a sample's row in a stage's Parquet shards."""

    title: str
    columns: tuple[str, ...] | None = None  # None: all
    hidden: tuple[str, ...] = ("key",)


@dataclass(frozen=True)
class Learning:
    """What a stage learned from a sample: what `trace` lists and `forget` warns of."""

    use: str  # such as "caption"
    steps: int
    batch_size: int
    rows: Rows  # ALIGNED: every downloaded pair; KEPT: the selected pairs that are not held out


@dataclass(frozen=True)
class StageType:
    """Everything there is to know of a kind of stage.

    ``run`` and the classes of ``config`` are where the fingerprint starts to follow the code; nothing else here counts.
    """

    name: str  # one stage of this name, or one per entry of the config section of this name, as ``train.base``
    run: Callable[[Context[Any, Any]], None]
    config: type[StageConfig]
    inputs: type[StageInputs]
    placement: Callable[[RunConfig], Placement] = lambda config: Placement.DRIVER
    optional: Callable[[RunConfig, str], bool] = lambda config, name: True  # whether an optional input is used
    sources: Callable[[RunConfig], list[str]] | None = None  # files from outside whose bytes count; UserError if unfit
    # As `sources`, of one of several instances, by its name in the config.
    instance_sources: Callable[[RunConfig, str], list[str]] | None = None
    instances: Callable[[RunConfig], Mapping[str, StageConfig]] | None = None  # several stages ``<name>.<entry>``
    # Inputs whose shard n is all that shard n of this stage needs of them: with `cluster.stream` the stage begins while
    # these are running, and reads them by `Context.feed_shards`.
    streams: tuple[str, ...] = ()
    # Further inputs of one of several instances, by its name in the config: names of stages before it.
    instance_inputs: Callable[[RunConfig, str], tuple[str, ...]] | None = None
    section: type[Config] | None = None  # config section ``<name>``, where `pipeline.config.RunConfig` has none
    # What the report shows: the node's colour in the graph and the counter that says how much was made.
    kind: str = "data"
    counter: str = "rows"
    published: tuple[str, ...] = ()  # outputs that are copied to the run folder
    # What trace and forget need to know of the samples in the stage's files.
    rows: Rows = Rows.NONE
    balance: RowBalance | None = None
    trace: TraceView | None = None
    learned: Callable[[Manifest], Learning | None] | None = None


@dataclass(frozen=True)
class Stage:
    """A stage of a run."""

    name: str
    type: StageType
    config: StageConfig
    inputs: tuple[str, ...]
    sources: Callable[[], list[str]] | None
    placement: Placement


def always(placement: Placement) -> Callable[[RunConfig], Placement]:
    """Returns a `StageType.placement` that does not depend on the config."""
    return lambda config: placement
