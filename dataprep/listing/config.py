"""Config of the listing: where rows come from."""

from __future__ import annotations

import codecs
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from dataprep.io.config import Config
from dataprep.listing.layouts import LAYOUTS
from dataprep.synthetic.config import ScenesConfig


def _add_layouts(schema: dict[str, Any]) -> None:
    schema["enum"] = ["auto", *LAYOUTS]


class ListingConfig(Config):
    """The image-caption pairs to train on."""

    source: Literal["scenes", "table", "folder", "webdataset", "subject"] = Field(
        default="scenes",
        description="scenes: the embedded corpus; table: a list of URLs; folder: images; "
        "webdataset: tars of images as img2dataset writes them; subject: what section `subject` describes",
    )
    path: str | None = Field(
        default=None,
        description="table, webdataset: a file, a pattern (*, ?, [..], {00000..00003}) or a folder; "
        "folder: the folder; any fsspec URL",
    )
    layout: str = Field(
        default="auto",
        description="column layout of a public list; auto: recognised by column names, see docs/sources.md",
        json_schema_extra=_add_layouts,
    )
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
    rows_per_shard: int = Field(
        default=1000, ge=1, le=10_000, description="rows per shard; a sample key has 4 digits for the row"
    )
    limit: int | None = Field(default=None, ge=1, description="take only the first rows of the source")
    scenes: ScenesConfig = Field(default=ScenesConfig(), description="the embedded corpus, if source is scenes")

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
    def _path_fits_source(self) -> ListingConfig:
        made_here = self.source in ("scenes", "subject")
        if not made_here and not self.path:
            raise ValueError(f"path is not set while source is {self.source!r}; set path to the {self.source}")
        if made_here and self.path is not None:
            raise ValueError(
                f"path {self.path!r} is set while source is {self.source!r}; set source to table or folder"
            )
        if (made_here or self.source == "folder") and self.layout != "auto":
            raise ValueError(f"layout {self.layout!r} is set while source is {self.source!r}; leave layout out")
        for key in ("image_member", "caption_member"):
            if getattr(self, key) is not None and self.source != "webdataset":
                raise ValueError(f"{key} is set while source is {self.source!r}; it is of webdataset alone")
        return self
