"""`jaxllm serve` on a model that writes the same answer to every prompt: reasoning, a sentence and two calls.

    python calling_server.py CHECKPOINT [flags of `jaxllm serve`]

The template makes the same prompt of every chat, so that the place of a token says which one comes next.
"""

import sys

import jax
import jax.numpy as jnp

from jaxllm.cli import main
from jaxllm.models.llama import LlamaForCausalLM
from jaxllm.server import main as server
from jaxllm.server.text import Tokenizer

PROMPT = "Once upon a time"
TEMPLATE = "{# <think> </think> <tool_call> #}{% if tools %}{% endif %}" + PROMPT
REASONING = "They want to know the weather."
CONTENT = "I look that up."
CALLS = [("get_weather", '{"city": "Paris", "days": 3}'), ("now", "{}")]
ANSWER = f"<think>\n{REASONING}\n</think>\n\n{CONTENT}" + "".join(
    f'\n<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>' for name, arguments in CALLS
)


def speaking(answer: list[int], start: int) -> type[LlamaForCausalLM]:
    """A Llama that draws answer[i] behind the token at position start + i, whatever its weights say."""

    class Speaking(LlamaForCausalLM):
        def __call__(self, step, cache):
            hidden, cache = super().__call__(step, cache)
            return hidden.at[:, 0].set(step.positions.astype(hidden.dtype)), cache

        def logits(self, hidden: jax.Array) -> jax.Array:
            place = jnp.clip(hidden[..., 0].astype(jnp.int32) - start, 0, len(answer) - 1)
            chosen = jnp.asarray(answer, jnp.int32)[place]
            return 100.0 * jax.nn.one_hot(chosen, self.config.vocab_size, dtype=jnp.float32)

    return Speaking


def serve(checkpoint: str, *flags: str) -> None:
    tokenizer = Tokenizer.load(checkpoint)
    prompt = tokenizer.encode(PROMPT, add_special_tokens=False)
    answer = [*tokenizer.encode(ANSWER, add_special_tokens=False), tokenizer.encode("</s>", False)[-1]]
    model_class = speaking(answer, len(prompt) - 1)
    run = server.run
    server.run = lambda engine, config: run(engine, config, model_class)
    sys.argv[1:] = ["serve", "--model", checkpoint, *flags]
    main()


if __name__ == "__main__":
    serve(*sys.argv[1:])
