"""A tiny Llama with random weights, its runner, and a scheduler of plans written by hand."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.config import EngineConfig
from jaxllm.core import PageCopy, Request, Row, RowOutput, SamplingParams, StepPlan
from jaxllm.runner import Handle, Runner
from jaxllm.sampling import LogitsProcessor

PAGE = 8
VOCAB = 61

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.5,  # large, so that greedy text wanders
}


class Boost(LogitsProcessor):
    """A processor of a user's: {"token": id, "step": x} adds x to the token's logit for each token drawn so far."""

    name = "boost"

    def __init__(self, vocab_size: int):
        super().__init__(vocab_size)
        self.parameters = {"token": np.int32(0), "step": np.float32(0)}
        self.state = {"times": np.float32(0)}

    def parse(self, argument: Any) -> dict[str, Any]:
        return {"token": argument["token"], "step": argument["step"]}

    def apply(self, logits, params, state, num_drawn):
        chosen = jnp.arange(self.vocab_size, dtype=jnp.int32)[None, :] == params["token"][:, None]
        return jnp.where(chosen, logits + (params["step"] * state["times"])[:, None], logits)

    def update(self, params, state, tokens, drawn):
        return {"times": state["times"] + drawn.astype(jnp.float32)}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a config.json and nothing else."""
    path = tmp_path_factory.mktemp("tiny-llama")
    (path / "config.json").write_text(json.dumps(LLAMA))
    return path


@pytest.fixture(scope="session")
def config(tiny: Path) -> EngineConfig:
    """Four slots; extend programs of 64 and 512 tokens; decode programs of 1 and 4 steps."""
    return EngineConfig(
        model=str(tiny),
        load_format="dummy",
        seed=3,
        max_num_seqs=4,
        max_num_batched_tokens=300,
        max_model_len=320,
        block_size=PAGE,
        num_gpu_blocks_override=401,
        decode_steps=(1, 4),
        max_logprobs=5,
        compilation_cache_dir="",
        logits_processors=(Boost,),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def runner(config: EngineConfig) -> Runner:
    return Runner.load(config)


@dataclass
class Driver:
    """Plans steps by hand: every request has a slot and all its pages from the start."""

    runner: Runner
    next_page: int = 1
    pages: dict[str, list[int]] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)

    def request(
        self, prompt: Sequence[int], slot: int, *, stop_ids: tuple[int, ...] = (), max_total: int = 320, seed: int = 7,
        output: Sequence[int] = (), sample_index: int = 0, **params: Any,
    ) -> Request:  # fmt: skip
        """A request in `slot`, greedy unless a temperature is given; `output` is known from before a preemption."""
        name = f"r{len(self.pages)}"
        settings = SamplingParams(**({"temperature": 0, "max_tokens": 300} | params))
        request = Request(
            request_id=name, prompt=list(prompt), params=settings, stop_ids=stop_ids, max_total=max_total, seed=seed,
            sample_index=sample_index, output=list(output), slot=slot,
        )  # fmt: skip
        num_pages = -(-max_total // PAGE)
        self.pages[name] = list(range(self.next_page, self.next_page + num_pages))
        self.next_page += num_pages
        assert self.next_page <= self.runner.memory_plan.num_pages
        self.fresh.add(name)
        return request

    def submit_extend(
        self, *shares: tuple[Request, int], copies: Sequence[PageCopy] = (), on_device: Sequence[Request] = ()
    ) -> Handle:
        """Computes the next `count` tokens of each request; those in on_device feed the slot's last token."""
        rows = []
        for request, count in shares:
            start = request.num_computed
            tokens = [] if request in on_device else request.token_ids(start, start + count)
            draws = start + count >= request.num_tokens
            pages = self.pages[request.request_id][: -(-(start + count) // PAGE)]
            fresh = request.request_id in self.fresh
            self.fresh.discard(request.request_id)
            rows.append(Row(request, request.slot, start, count, tokens, fresh, draws, [pages], []))
            request.num_computed += count
            request.num_inflight += draws
        return self.runner.submit(StepPlan("extend", rows, copies=list(copies)))

    def submit_decode(self, *requests: Request, steps: int = 1) -> Handle:
        rows = []
        for request in requests:
            start = request.num_computed
            pages = self.pages[request.request_id]
            count = min(steps, request.max_total - request.num_tokens)
            last = (start + max(count, 1) - 1) // PAGE
            crosses = start % PAGE == 0 or last > start // PAGE
            new_pages = [(0, last, pages[last])] * crosses
            rows.append(Row(request, request.slot, start, count, [], False, True, [pages], new_pages))
            request.num_computed += count
            request.num_inflight += count
        return self.runner.submit(StepPlan("decode", rows, num_steps=steps))

    def collect(self, handle: Handle) -> list[RowOutput]:
        output = self.runner.collect(handle)
        for row, result in zip(handle.plan.rows, output.rows, strict=True):
            row.request.output += result.tokens
            row.request.num_inflight -= row.count if handle.plan.kind == "decode" else row.draws
        return output.rows

    def extend(self, *shares: tuple[Request, int], **options: Any) -> list[RowOutput]:
        return self.collect(self.submit_extend(*shares, **options))

    def decode(self, *requests: Request, steps: int = 1) -> list[RowOutput]:
        return self.collect(self.submit_decode(*requests, steps=steps))

    def generate(self, request: Request, total: int, steps: int = 1) -> list[int]:
        """The whole prompt in one step, then decode steps until `total` tokens are out."""
        self.extend((request, request.num_known))
        while len(request.output) < total:
            self.decode(request, steps=steps)
        return request.output


@pytest.fixture
def driver(runner: Runner) -> Driver:
    return Driver(runner)


def greedy(runner: Runner, prompt: Sequence[int], count: int) -> list[int]:
    """What the model says without a cache, the most likely token each time."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(runner.prompt_logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, VOCAB, length).tolist()
