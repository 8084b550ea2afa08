"""The base of every config class, keys that name an entry of a registry, and sections whose class a key names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidatorFunctionWrapHandler
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


@dataclass(frozen=True, eq=False)  # hashed by identity, as a part of ``X | None`` has to be
class ClassOf:
    """Annotation of a section whose class another of its keys names: an entry of ``classes``, by default the first.

    Unlike a tagged union of pydantic it leaves the name out of the place of an error.
    """

    key: str
    classes: Mapping[str, type[Config]]

    def choose(self, values: Any) -> type[Config]:
        """Returns the class of a section's plain values; raises ValueError for an unknown name."""
        default = next(iter(self.classes))
        name = values.get(self.key, default) if isinstance(values, Mapping) else default
        if name not in self.classes:
            raise ValueError(f"{self.key}={name} is unknown; take one of {', '.join(self.classes)}")
        return self.classes[name]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._validate, handler(source))

    def _validate(self, value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        return value if isinstance(value, Config) else self.choose(value).model_validate(value)
