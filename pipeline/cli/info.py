"""``env`` and ``schema``: what this installation is, and which keys a config may have."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli.options import AsJson, print_json


def print_environment(
    address: Annotated[
        str | None, typer.Option(help="Ray dashboard to look for; default: RAY_API_SERVER_ADDRESS, or this machine's")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the environment for a bug report. Versions, devices, memory, disk."""
    from pipeline.cli.environment import collect_environment, format_environment

    found = collect_environment(address)
    if as_json:
        print_json(found)
    else:
        print(format_environment(found))


def print_schema() -> None:
    """Print the JSON Schema of configs. Editors complete and check YAML with it."""
    from pipeline.config_schema import config_schema

    print_json(config_schema())
