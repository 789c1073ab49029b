"""`jaxllm serve`: the gRPC service and the OpenAI HTTP front."""

import dataclasses
import json
import logging
from typing import Annotated, Any

import typer

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import EngineConfig, ServerConfig

SHOW = Annotated[bool, typer.Option("--show-config", help="Print every option and where it came from, and end.")]


@command(app, log_level=logging.INFO, engine=EngineConfig, server=ServerConfig)
def serve(engine: Given, server: Given, show_config: SHOW = False) -> None:
    """Serve a model over gRPC and the OpenAI HTTP API until SIGTERM (finish what runs) or SIGINT (stop)."""
    config, server_config = engine_config(engine), ServerConfig(**server)
    if show_config:
        print("\n".join((*_lines(config, engine), *_lines(server_config, server))))
        return
    from jaxllm.server.main import run

    run(config, server_config)


def _lines(config: Any, given: Given) -> list[str]:
    """The fields of a configuration as a file for --config would hold them, and behind # who said so."""
    lines = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, tuple):
            value = list(value)
        name = field.name.replace("_", "-")
        if field.metadata["secret"] and value:
            line = f"# {name}: {len(value)} hidden"  # a comment, so that the rest still is a file to start with
        else:
            line = f"{name}: {json.dumps(value, ensure_ascii=False)}"  # JSON is YAML
        lines.append(f"{line}  # {given.origins.get(field.name, 'default')}")
    return lines
