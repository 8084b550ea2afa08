"""Config of the listing: where rows come from, from one source or from several."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from dataprep.filters.config import SelectConfig
from dataprep.filters.source_rules import check_source_keys, list_source_keys
from dataprep.io.caption_mix import CaptionWeights
from dataprep.io.config import Config
from dataprep.listing.layouts import LAYOUTS
from dataprep.listing.public_lists import PUBLIC_LISTS, WITHDRAWN_REASON, is_withdrawn
from dataprep.synthetic.config import ScenesConfig

MADE_HERE = ("scenes", "subject")
ONLY_SOURCE = ""  # name of a source that is the only one


def _add_layouts(schema: dict[str, Any]) -> None:
    schema["enum"] = ["auto", *LAYOUTS]


class SourceConfig(Config):
    """A source: its files, how they are read, and what is known of them."""

    source: Literal["scenes", "table", "folder", "webdataset", "dataset", "public", "subject", "several"]
    path: str | None = Field(
        default=None,
        description="table, webdataset: a file, a pattern (*, ?, [..], {00000..00003}) or a folder; folder: the "
        "folder; dataset: the folder of a Hugging Face dataset, hf://datasets/owner/name for one on the hub; public: "
        "the name of the list; any fsspec URL",
    )
    layout: str = Field(
        default="auto",
        description="column layout of a public list; auto: recognised by column names, see docs/sources.md",
        json_schema_extra=_add_layouts,
    )
    split: str | None = Field(default=None, description="dataset: the split to take; null: train, or the only one")
    subset: str | None = Field(default=None, description="dataset: which of its configurations; null: its default")
    url_column: str | None = Field(default=None, description="table: column of URLs; null: recognised by name")
    caption_column: str | None = Field(default=None, description="column of captions; null: recognised by name")
    encoding: str | None = Field(
        default=None,
        description="encoding of lists and caption files, as Python names it; null: UTF-8, UTF-16 or Windows-1252, "
        "as each shows",
    )
    quotes: Literal["auto", "standard", "text"] = Field(
        default="auto",
        description="quotation marks in CSV and TSV; auto: a quoted cell may span lines, and one that may "
        "have swallowed rows is refused; standard: it is taken as one cell; text: the marks are plain text",
    )
    hidden_files: bool = Field(
        default=False,
        description="also take files and folders with hidden or system names, such as .a, @eaDir and __MACOSX",
    )
    image_member: str | None = Field(
        default=None,
        description="webdataset: extension of the image in a sample, all after the first dot, such as jpg or rgb.png; "
        "null: the first of jpg, jpeg, png and so on that the sample has",
    )
    caption_member: str | None = Field(
        default=None,
        description="webdataset: extension of the caption in a sample, such as txt; "
        "null: txt, caption or text, else the JSON",
    )
    limit: int | None = Field(default=None, ge=1, description="take only the first rows of the source")
    licence: str | None = Field(
        default=None,
        description="licence of the images, an SPDX identifier such as cc-by-4.0, for rows whose source names none; "
        "for the data card",
    )
    captions: CaptionWeights | None = Field(
        default=None,
        description="which captions of an image to train on, and how often: column -> weight, or a list of columns; "
        "null: those of pack.captions",
    )
    withdrawn: Literal["refuse", "allow"] = Field(
        default="refuse", description="what to do with a list that its publisher withdrew, known by its name"
    )

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, layout: str) -> str:
        if layout not in ("auto", *LAYOUTS):
            raise ValueError(f"{layout!r} is not a layout; give one of {', '.join(('auto', *LAYOUTS))}")
        return layout

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, encoding: str | None) -> str | None:
        if encoding is not None:
            try:
                codecs.lookup(encoding)
                "".encode(encoding)
            except LookupError as error:
                raise ValueError(
                    f"{encoding!r} is no text encoding; give one such as utf-8, cp1252, gb18030"
                ) from error
        return encoding

    @model_validator(mode="after")
    def _path_fits_source(self) -> Self:
        made_here = self.source in MADE_HERE
        if self.source != "several" and not made_here and not self.path:
            what = "name of the list" if self.source == "public" else self.source
            raise ValueError(f"path is not set while source is {self.source!r}; set path to the {what}")
        if made_here and self.path is not None:
            raise ValueError(
                f"path {self.path!r} is set while source is {self.source!r}; set source to table or folder"
            )
        if (made_here or self.source == "folder") and self.layout != "auto":
            raise ValueError(f"layout {self.layout!r} is set while source is {self.source!r}; leave layout out")
        for keys, kinds in (
            (("image_member", "caption_member"), ("webdataset", "dataset")),
            (("split", "subset"), ("dataset",)),
        ):
            for key in keys:
                if getattr(self, key) is not None and self.source not in kinds:
                    raise ValueError(f"{key} is set while source is {self.source!r}; it is of {kinds[0]} alone")
        if self.source == "public" and self.path not in PUBLIC_LISTS:
            raise ValueError(f"path {self.path!r}: no public list of this name; take one of {', '.join(PUBLIC_LISTS)}")
        if self.withdrawn == "refuse" and self.path is not None and is_withdrawn(self.path):
            raise ValueError(f"path {self.path!r} is a list that was withdrawn. {WITHDRAWN_REASON}")
        return self

    def locate(self) -> Self:
        """Returns the source with the path and layout of the public list that it names, if it names one."""
        if self.source != "public":
            return self
        assert self.path is not None
        found = PUBLIC_LISTS[self.path]
        layout = found.layout if self.layout == "auto" else self.layout
        return self.model_copy(update={"source": "dataset", "path": found.path, "layout": layout})


def _add_source_keys(schema: dict[str, Any]) -> None:
    fields = SelectConfig.model_json_schema()["properties"]
    schema["properties"] = {key: fields[key] for key in list_source_keys()}
    schema["additionalProperties"] = False


class MixedSourceConfig(SourceConfig):
    """One of several sources."""

    source: Literal["table", "folder", "webdataset", "dataset", "public"] = Field(
        description="as listing.source; not scenes and subject, which stand alone"
    )
    select: dict[str, Any] = Field(
        default={},
        description="keys of section select for the rows of this source, in place of those there, such as "
        "{min_side: 256}; filters that judge each row alone",
        json_schema_extra=_add_source_keys,
    )
    weight: float | None = Field(
        default=None,
        gt=0,
        description="share of the training samples that come from this source, relative to the weights of the others; "
        "null for all: in proportion to their rows",
    )

    @field_validator("select")
    @classmethod
    def _check_select(cls, given: dict[str, Any]) -> dict[str, Any]:
        check_source_keys(given)
        return given


class ListingConfig(SourceConfig):
    """The image-caption pairs to train on: the keys of one source, or `sources`."""

    source: Literal["scenes", "table", "folder", "webdataset", "dataset", "public", "subject", "several"] = Field(
        default="scenes",
        description="scenes: the embedded corpus; table: a list of URLs; folder: images; webdataset: tars of images "
        "as img2dataset writes them; dataset: a Hugging Face dataset; public: a published list by its name; subject: "
        "what section `subject` describes; several: what `sources` describes, which need not be said",
    )
    sources: dict[str, MixedSourceConfig] = Field(
        default={}, description="several sources in place of one, by a name of your own: each has the keys of one"
    )
    rows_per_shard: int = Field(
        default=1000, ge=1, le=10_000, description="rows per shard; a sample key has 4 digits for the row"
    )
    scenes: ScenesConfig = Field(default=ScenesConfig(), description="the embedded corpus, if source is scenes")

    @model_validator(mode="before")
    @classmethod
    def _several_by_their_keys(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("sources") and "source" not in data:
            return data | {"source": "several"}
        return data

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if (self.source == "several") != bool(self.sources):
            raise ValueError(
                f"source is {self.source!r} and sources has {len(self.sources)} entries; give the keys of one source, "
                "or several below `sources`"
            )
        if not self.sources:
            return self
        fields = {name: field for name, field in SourceConfig.model_fields.items() if name != "source"}
        if given := [name for name, field in fields.items() if getattr(self, name) != field.default]:
            raise ValueError(f"{given[0]} is set beside `sources`; set it in each of them that it is meant for")
        for name in self.sources:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"sources.{name}: a source is named by lower-case letters, digits and _")
        without = [name for name, source in self.sources.items() if source.weight is None]
        if 0 < len(without) < len(self.sources):
            raise ValueError(f"sources.{without[0]}.weight is not set, other weights are; give all or none")
        return self

    def list_sources(self) -> dict[str, SourceConfig]:
        """Returns the sources by name, public lists as the data sets that they are; a single one is `ONLY_SOURCE`."""
        sources: Mapping[str, SourceConfig] = self.sources or {ONLY_SOURCE: self}
        return {name: source.locate() for name, source in sources.items()}

    def source_weights(self) -> dict[str, float] | None:
        """Returns the weight of each source at training; None: rows in proportion to their number."""
        weights = {name: source.weight for name, source in self.sources.items() if source.weight is not None}
        return weights or None

    def without_training(self) -> Self:
        """Returns the config without what matters after the listing alone: weights, licences, captions, thresholds."""
        later = {"licence": None, "captions": None}
        own: dict[str, Any] = {**later, "weight": None, "select": {}}
        mixed = {name: source.model_copy(update=own) for name, source in self.sources.items()}
        return self.model_copy(update={**later, "sources": mixed})
