"""`jaxllm generate`: a prompt's continuation, printed as it comes."""

import sys
import time
from typing import Annotated

import typer

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import EngineConfig
from jaxllm.core import SamplingParams
from jaxllm.progress import progress

PROMPT = Annotated[str, typer.Argument(help="The text to continue; `-` reads it from standard input.")]


@command(app, defaults={"max_tokens": 256}, engine=EngineConfig, sampling=SamplingParams)
def generate(
    prompt: PROMPT,
    engine: Given,
    sampling: Given,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's message of a chat.")] = False,
    system: Annotated[str | None, typer.Option(help="The chat's system message; implies --chat.")] = None,
) -> None:
    """Continue PROMPT and stream the text to the terminal. What no option sets, the checkpoint's makers chose."""
    config = engine_config(engine)
    text = sys.stdin.read() if prompt == "-" else prompt
    from jaxllm import LLM

    with progress() as report:
        llm = LLM(**vars(config), progress=report)
    params = SamplingParams(**{**llm.default_sampling, **sampling})
