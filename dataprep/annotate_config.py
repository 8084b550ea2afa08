"""Config of the annotations."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from dataprep.images.faces import FacesConfig
from dataprep.images.text_area import TextConfig
from dataprep.io.config import Config

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier


# fmt: off
LANGUAGES = (
    "en", "zh", "ar", "cs", "de", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "sv", "tr", "vi",
)
# fmt: on


class AnnotateConfig(Config):
    """How image-caption pairs are measured."""

    languages: tuple[str, ...] = Field(
        default=LANGUAGES,
        min_length=1,
        strict=False,
        description="languages to choose from (ISO 639-1); with fewer, short captions are classified more reliably",
    )
    faces: FacesConfig | None = Field(
        default=None, description="find faces, for select.max_faces, pack.blur_faces and the audit; null: do not look"
    )
    text: TextConfig | None = Field(
        default=None, description="measure text in images, for select.max_text_area and the audit; null: do not look"
    )

    @field_validator("languages")
    @classmethod
    def _known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := [code for code in languages if not re.fullmatch(r"[a-z]{2,3}", code)]:
            raise ValueError(f"{unknown[0]!r} is not an ISO 639-1 code such as en")
        try:
            load_language_identifier(languages)
        except ValueError as error:
            raise ValueError(f"a language is not known to the classifier ({error}); remove it") from error
        return languages


@cache
def load_language_identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    """Loads py3langid's bundled model, restricted to ``languages``; ValueError for an unknown language.

    Cached: loading takes longer than classifying a thousand captions.
    """
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier
