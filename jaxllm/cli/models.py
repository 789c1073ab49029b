"""`jaxllm models`: what the registry can build."""

import dataclasses
import json
from typing import Annotated

import typer

from jaxllm.cli.command import app, command, print_table

_COLUMNS = ("family", "task", "blocks", "caches", "features")


@command(app)
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the architectures that can be served, as config.json's `architectures` names them, and what they are.

    Blocks are the classes of the layers; caches, what layers keep of a sequence; features, what some model of the
    family has.
    """
    from jaxllm.models.describe import describe_all

    rows = [dataclasses.asdict(row) for row in describe_all()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.table import Column, Table

    table = Table(Column("architecture", overflow="fold"), *(Column(name, overflow="fold") for name in _COLUMNS))
    for row in rows:
        table.add_row(*(_shown(row[str(column.header)]) for column in table.columns))
    print_table(table)


def _shown(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else ", ".join(value)
