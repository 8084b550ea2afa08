"""Config of the data card."""

from __future__ import annotations

from pydantic import Field

from dataprep.io.config import Config


class CardConfig(Config):
    """Texts of the data card."""

    title: str | None = Field(default=None, description="name of the dataset; null: none (the run folder is not named)")
    contact: str | None = Field(default=None, description="contact for removal requests: an address or a URL")
    notes: str | None = Field(default=None, description="free text: purpose, consent, known limits")
