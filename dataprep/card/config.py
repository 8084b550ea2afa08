"""Config of the data card."""

from __future__ import annotations

import re

from pydantic import Field, field_validator

from dataprep.io.config import Config

DATE = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])")


class CardConfig(Config):
    """What only the publisher of the dataset knows; goes into the data card and the files made from the same facts."""

    title: str | None = Field(default=None, description="name of the dataset; null: none (the run folder is not named)")
    contact: str | None = Field(default=None, description="contact for removal requests: an address or a URL")
    notes: str | None = Field(default=None, description="free text: purpose, consent, known limits")
    licence: str | None = Field(
        default=None, description="licence of the dataset as a whole, an SPDX identifier such as cc-by-4.0; null: none"
    )
    creator: str | None = Field(default=None, description="person or organisation that publishes the dataset")
    url: str | None = Field(default=None, description="web page of the dataset")
    citation: str | None = Field(default=None, description="how to cite the dataset, as BibTeX or text")
    version: str = Field(default="1.0.0", pattern=r"^\d+\.\d+\.\d+$", description="version of the dataset, as 1.0.0")
    published: str | None = Field(default=None, description="date of publication, as 2026-01-31")

    @field_validator("published")
    @classmethod
    def _date_has_its_form(cls, date: str | None) -> str | None:
        if date is not None and not DATE.fullmatch(date):
            raise ValueError(f"{date!r} is not a date; give it as 2026-01-31, in quotes")
        return date
