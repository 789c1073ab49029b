"""Batch files in OpenAI's form, run through the server's own HTTP application, which listens nowhere then."""

from jaxllm.server.batch.run import Summary, run

__all__ = ["Summary", "run"]
