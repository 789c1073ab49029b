"""`jaxllm run-batch`: a file of requests in, a file of answers out."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import OFFLINE_INTERVAL_MS, EngineConfig, ServerConfig

SOURCE = Annotated[Path, typer.Argument(help="OpenAI's batch format: {custom_id, method, url, body} a line.")]
TARGET = Annotated[Path, typer.Argument(help="Where the answers go; those that stand there already are kept.")]

OF_REQUESTS = (
    "chat_template", "tool_call_parser", "reasoning_parser", "enable_auto_tool_choice", "max_request_bytes",
    "max_prompts", "max_samples", "max_stop_strings",
)  # fmt: skip
WITHOUT = tuple(field.name for field in dataclasses.fields(ServerConfig) if field.name not in OF_REQUESTS)
"""Options of a server that listens."""


@command(
    app,
    name="run-batch",
    defaults={"stream_interval_ms": OFFLINE_INTERVAL_MS},
    without=WITHOUT,
    engine=EngineConfig,
    server=ServerConfig,
)
def run_batch(source: SOURCE, target: TARGET, engine: Given, server: Given) -> None:
    """Answer a file of requests to any endpoint, without a server. Run it again to go on where it was ended."""
    config, server_config = engine_config(engine), ServerConfig(**server)
    from jaxllm.server.batch.run import run

    summary = run(source, target, config, server_config)
    before = f", {summary.skipped} before" if summary.skipped else ""
    print(f"{target}: {summary.answered} answered, {summary.errors} of them with errors{before}")
