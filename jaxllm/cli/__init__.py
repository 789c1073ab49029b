"""The command line: `jaxllm --help`. One file per command; nothing heavy is imported before one runs."""

import os
import sys

from jaxllm.cli import bench, convert, generate, models, plan, serve
from jaxllm.cli.command import app

__all__ = ["bench", "convert", "generate", "main", "models", "plan", "serve"]


def main() -> None:
    try:
        app(prog_name="jaxllm")
    except BrokenPipeError:
        # The reader of our output went away (`jaxllm generate ... | head`): end without a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
