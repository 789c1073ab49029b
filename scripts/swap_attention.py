"""A research script: change how a model attends, in one file, and generate or serve with it.

The change: attention against a flat background. What a token takes from the others is sharpened by subtracting
what it would take if it looked everywhere alike, as differential attention (Ye et al. 2024) cancels noise with a
second attention map; here the second map is flat, so that a trained checkpoint works as it is. Strength 0 is the
model unchanged.

    python scripts/swap_attention.py "Once upon a time"
    python scripts/swap_attention.py --strength 0.4 --model path/to/llama/checkpoint "Once upon a time"
    python scripts/swap_attention.py --serve

Nothing else has to know: the paged cache, continuous batching, prefix caching and every service work with it.
"""

import argparse

import jax
import jax.numpy as jnp

from jaxllm import LLM, SamplingParams
from jaxllm.layers.attention import attend
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.step import DenseStep, Step
from jaxllm.models.llama import LlamaAttention, LlamaForCausalLM, Rotation


class SharpenedAttention(LlamaAttention):
    """(1 + strength) * attention - strength * the mean of the values seen."""

    strength = 0.2

    def __call__(
        self, x: jax.Array, rotation: Rotation, step: Step | DenseStep, cache: PagedCache | None
    ) -> tuple[jax.Array, PagedCache | None]:
        """x [T, E] -> [T, E], cache."""
        q, k, v = (part.reshape(x.shape[0], -1, self.head_dim) for part in self.qkv.split(x))
        q, k, placement = self.place(q, k, rotation)
        scale = self.head_dim**-0.5
        mixed, cache = attend(q, k, v, step, cache, scale=scale, placement=placement, window=self.window)
        # A query of zeros scores every key alike. The keys and values are written once more, the same ones.
        flat, cache = attend(jnp.zeros_like(q), k, v, step, cache, scale=scale, placement=placement, window=self.window)
        mixed = (1 + self.strength) * mixed - self.strength * flat
        return self.out(mixed.reshape(x.shape[0], -1)), cache


def sharpened(strength: float) -> type[LlamaForCausalLM]:
    """A Llama whose layers attend with this strength."""

    class Attention(SharpenedAttention):
        pass

    class SharpenedLlama(LlamaForCausalLM):
        attention_class = Attention

    Attention.strength = strength
    return SharpenedLlama


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompt", nargs="?", default="Once upon a time")
    parser.add_argument("--model", default="demo", help="a checkpoint directory of the Llama architecture, or demo")
    parser.add_argument("--strength", type=float, default=SharpenedAttention.strength)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help="serve gRPC and HTTP instead of comparing")
    parser.add_argument("--grpc-port", type=int, default=50051)
    parser.add_argument("--http-port", type=int, default=8000)
    arguments = parser.parse_args()
    model_class = sharpened(arguments.strength)

    if arguments.serve:
        from jaxllm.config import EngineConfig, ServerConfig
        from jaxllm.server.main import run

        ports = ServerConfig(grpc_port=arguments.grpc_port, http_port=arguments.http_port)
        run(EngineConfig(model=arguments.model), ports, model_class=model_class)
        return
    for name, definition in (("as it is", None), (f"sharpened by {arguments.strength}", model_class)):
        with LLM(arguments.model, model_class=definition, max_num_seqs=1, max_num_batched_tokens=64) as llm:
            params = SamplingParams(temperature=0, max_tokens=arguments.max_tokens, logprobs=0)
            (output,) = llm.generate(arguments.prompt, params, use_tqdm=False)
        answer = output.outputs[0]
        mean = (answer.cumulative_logprob or 0.0) / len(answer.token_ids)
        print(f"--- {name}: mean log probability {mean:.3f}\n{arguments.prompt}{answer.text}\n")


if __name__ == "__main__":
    main()
