"""`jaxllm models`: what the registry can build."""

import json
from typing import Annotated

import typer

from jaxllm.cli.command import app, command


@command(app)
def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the architectures that can be served, as config.json's `architectures` names them."""
    from jaxllm.models.registry import MODELS

    rows = [
        {
            "architecture": architecture,
            "model_type": model_type,
            "class": f"{model_class.__module__}.{model_class.__qualname__}",
        }
        for architecture, (model_type, model_class) in sorted(MODELS.items())
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("architecture", "model_type", "class")
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)
