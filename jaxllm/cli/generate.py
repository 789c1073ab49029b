"""`jaxllm generate`: a prompt's continuation, printed as it comes."""

import sys
import time
from typing import Annotated

import typer

from jaxllm.cli.command import Given, app, command, engine_config
from jaxllm.config import EngineConfig
from jaxllm.core import SamplingParams
from jaxllm.errors import JaxllmError, RequestError
from jaxllm.progress import progress

PROMPT = Annotated[str, typer.Argument(help="The text to continue; `-` reads it from standard input.")]
CHAT = Annotated[bool, typer.Option("--chat", help="Send the prompt as a user's message, through the chat template.")]
SYSTEM = Annotated[str | None, typer.Option(help="The chat's system message; implies --chat.")]

WITHOUT = (
    "detokenize", "logprobs", "prompt_logprobs", "n", "best_of", "use_beam_search", "length_penalty", "early_stopping",
    "logit_bias", "bad_words_ids", "thinking_token_ids", "echo", "logits_processors",
    "structured_outputs",
)  # fmt: skip
"""Parameters without an option: the text of one answer is all that is shown here, and options take plain values."""


@command(
    app,
    defaults={"max_tokens": 256},
    without=WITHOUT,
    engine=EngineConfig,
    sampling=SamplingParams,
)
def generate(prompt: PROMPT, engine: Given, sampling: Given, chat: CHAT = False, system: SYSTEM = None) -> None:
    """Continue PROMPT and stream the text to the terminal. What no option sets, the checkpoint's makers chose."""
    config = engine_config(engine)
    SamplingParams(**sampling)  # a wrong value is told before the model is loaded
    text = sys.stdin.read() if prompt == "-" else prompt
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError("the prompt is not UTF-8: convert it first (iconv -t utf-8)", "prompt") from None
    from jaxllm import LLM

    with progress() as report:
        llm = LLM(**vars(config), progress=report)
    params = SamplingParams(**{**llm.engine.info.generation_defaults, **sampling})
    token_ids: str | list[int] = text
    if chat or system is not None:
        messages = [{"role": "system", "content": system}] if system is not None else []
        token_ids = llm.tokenizer.apply_chat([*messages, {"role": "user", "content": text}])
    start = time.monotonic()
    shown = 0
    for output in llm.stream(token_ids, params):
        if output.error is not None:
            raise JaxllmError(output.error)
        answer = output.outputs[0]
        print(answer.text[shown:], end="", flush=True)
        shown = len(answer.text)
    print()
    seconds = time.monotonic() - start
    if sys.stderr.isatty():
        count = len(answer.token_ids)
        print(f"{count} tokens in {seconds:.2f} s, {count / seconds:.1f} tokens/s", file=sys.stderr)
