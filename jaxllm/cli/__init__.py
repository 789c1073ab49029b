"""The command line: `jaxllm --help`. One file per command; nothing heavy is imported before one runs."""

import os
import sys
from typing import Annotated

import typer

from jaxllm import __version__
from jaxllm.cli import bench, convert, generate, models, plan, run_batch, serve
from jaxllm.cli.command import app

__all__ = ["bench", "convert", "generate", "main", "models", "plan", "run_batch", "serve"]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Serves language models from JAX on NVIDIA GPUs."""


def main() -> None:
    # Logits processors are named as modules from where one stands; an installed command does not look there.
    sys.path.append(os.getcwd())
    try:
        app(prog_name="jaxllm")
    except BrokenPipeError:
        # The reader of our output went away (`jaxllm generate ... | head`): end without a complaint.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
