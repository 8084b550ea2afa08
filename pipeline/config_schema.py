"""The JSON Schema of a config, with which editors complete and check its keys."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from pipeline.config import run_config_type

SCHEMA_FILE = "configs/schema.json"  # `make schema` writes it; the first line of each config names it


class _SchemaGenerator(GenerateJsonSchema):
    def get_default_value(self, schema: core_schema.WithDefaultSchema) -> Any:
        """Returns the default also where it comes from a factory."""
        if "default_factory" in schema and not schema.get("default_factory_takes_data"):
            return schema["default_factory"]()  # type: ignore[call-arg]
        return super().get_default_value(schema)


def config_schema() -> dict[str, Any]:
    """Returns the schema: each key with its type, range, description and default, each section as a definition.

    A section's own default is left out: its keys state theirs, and editors would insert it whole.
    """
    schema = run_config_type().model_json_schema(schema_generator=_SchemaGenerator)
    for definition in (schema, *schema["$defs"].values()):
        for value in definition.get("properties", {}).values():
            if "$ref" in value:
                value.pop("default", None)
                value.setdefault("description", schema["$defs"][value["$ref"].rpartition("/")[2]]["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
