"""YAML as people mean it: the plain scalars of YAML 1.2, and no key twice."""

from __future__ import annotations

import re
from typing import Any

import yaml

from dataprep.io.errors import UserError

MERGE_TAG = "tag:yaml.org,2002:merge"
NULL_TAG, BOOLEAN_TAG = "tag:yaml.org,2002:null", "tag:yaml.org,2002:bool"
INTEGER_TAG, FLOAT_TAG = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


class _YamlLoader(yaml.SafeLoader):
    """YAML whose plain scalars are those of YAML 1.2, and without duplicate keys.

    1e-3 is a float and 4:3 a text, as are no, off and 2024-01-01.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: list[Any] = []  # keys need not be hashable here: the base class refuses those
        for key_node, _ in node.value:
            if key_node.tag == MERGE_TAG:
                continue
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise UserError(f"{key}: given twice (line {key_node.start_mark.line + 1}); keep one")
            seen.append(key)
        return super().construct_mapping(node, deep)


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in (NULL_TAG, MERGE_TAG)]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    (BOOLEAN_TAG, r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (INTEGER_TAG, r"^(0|[-+]?[1-9][0-9_]*|0x[0-9a-fA-F_]+)$", "-+0123456789"),
    (FLOAT_TAG, r"^[-+]?(\.[0-9]+|[0-9][0-9_]*\.[0-9]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?$", "-+.0123456789"),
    (FLOAT_TAG, r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", "-+."),
):
    _YamlLoader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def parse_yaml(text: str | bytes, name: str) -> Any:
    """Returns the value of a YAML text; raises UserError with ``name`` and the line if it is not valid YAML."""
    try:
        return yaml.load(text, Loader=_YamlLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: not valid YAML ({getattr(error, 'problem', None) or error})") from error
