"""The base of every config class, and the type of a key that names an entry of a registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


class Config(BaseModel):
    """Base of every config class: frozen, no unknown keys, no type coercion except int to float."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


@dataclass(frozen=True)
class NameIn:
    """Annotation of a string that has to be a name in ``registry``, looked up when a value is validated."""

    registry: Mapping[str, Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check_name, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(schema) | {"enum": [*self.registry]}

    def _check_name(self, name: str) -> str:
        if name not in self.registry:
            raise ValueError(f"{name!r} is unknown; take one of {', '.join(self.registry)}")
        return name
