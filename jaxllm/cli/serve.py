"""`jaxllm serve`: the gRPC service and the OpenAI HTTP front."""

import logging

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import EngineConfig, ServerConfig


@command(app, log_level=logging.INFO, engine=EngineConfig, server=ServerConfig)
def serve(engine: Given, server: Given) -> None:
    """Serve a model over gRPC and the OpenAI HTTP API until SIGTERM (finish what runs) or SIGINT (stop)."""
    config, server_config = engine_config(engine), ServerConfig(**server)
    from jaxllm.server.main import run

    run(config, server_config)
