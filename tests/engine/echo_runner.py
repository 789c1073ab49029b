"""A runner without a device: the next token follows from the last token and its position alone."""

import time
from dataclasses import dataclass

import numpy as np

from jaxllm.config import CacheGroup, EngineConfig, SchedulerConfig
from jaxllm.core import ModelInfo, Request, RowOutput, StepOutput, StepPlan
from jaxllm.engine import Engine

VOCABULARY = 1000
EOS = VOCABULARY - 1


def next_token(token: int, position: int) -> int:
    """Drawn behind `token` at `position`; never EOS by itself."""
    return (token * 31 + position * 17 + 5) % (VOCABULARY - 1)


def answer(prompt: list[int], length: int) -> list[int]:
    """What the runner continues a prompt with."""
    tokens = list(prompt)
    for position in range(len(prompt) - 1, len(prompt) - 1 + length):
        tokens.append(next_token(tokens[-1], position))
    return tokens[len(prompt) :]


@dataclass
class Echo:
    """A submitted step."""

    number: int
    plan: StepPlan
    output: StepOutput | None = None


class EchoRunner:
    """Does what Runner's interface promises, step by step, with last tokens kept by slot.

    step_time: seconds that a step takes. fail_at: the number of the step whose collection raises.
    """

    def __init__(
        self,
        num_pages: int = 65,
        page_size: int = 4,
        max_model_len: int = 128,
        max_num_seqs: int = 8,
        max_queued: int = 64,
        decode_steps: tuple[int, ...] = (1, 4),
        step_time: float = 0.0,
        fail_at: int | None = None,
    ):
        self.config = EngineConfig(model="echo", max_queued=max_queued)
        self.info = ModelInfo(
            name="echo", architecture="Echo", dtype="float32", num_parameters=0, vocab_size=VOCABULARY,
            max_model_len=max_model_len, eos_token_ids=(EOS,), max_logprobs=5, path="", generation_defaults={},
        )  # fmt: skip
        self.scheduler_config = SchedulerConfig(
            groups=(CacheGroup("tokens", num_pages),), page_size=page_size, max_num_seqs=max_num_seqs,
            max_num_batched_tokens=32, max_model_len=max_model_len, decode_steps=decode_steps, stream_interval=10.0,
            max_queued=max_queued,
        )  # fmt: skip
        self.plans: list[StepPlan] = []
        self.unkept = 0  # programs that a start would have compiled
        self._step_time = step_time
        self._fail_at = fail_at
        self._last = [0] * max_num_seqs

    def keep(self, *, wait: bool = False) -> None:
        self.unkept = 0

    def keep_next(self) -> bool:
        self.unkept = max(0, self.unkept - 1)
        return self.unkept > 0

    def submit(self, plan: StepPlan) -> Echo:
        self.plans.append(plan)
        echo = Echo(len(self.plans), plan)
        if not plan.constrained:
            self.draw(echo, None)
        return echo

    def draw(self, echo: Echo, masks: np.ndarray | None) -> None:
        """Of the tokens that a mask allows, the first from the next token on."""
        assert echo.output is None
        rows = []
        for i, row in enumerate(echo.plan.rows):
            if row.tokens:
                self._last[row.slot] = row.tokens[-1]
            drawn: list[int] = []
            position = row.start + (row.count - 1 if echo.plan.kind == "extend" else 0)
            for step in range((row.count if echo.plan.kind == "decode" else 1) if row.draws else 0):
                token = next_token(self._last[row.slot], position + step)
                if masks is not None:
                    allowed = np.unpackbits(masks[i].view(np.uint8), bitorder="little")[:VOCABULARY]
                    token = int(np.argmax(np.roll(allowed, -token)) + token) % VOCABULARY
                self._last[row.slot] = token
                drawn.append(token)
                if token in row.request.stop_ids and row.request.params.min_tokens == 0:
                    break
            rows.append(RowOutput(drawn))
        echo.output = StepOutput(rows)

    def collect(self, echo: Echo) -> StepOutput:
        if echo.number == self._fail_at:
            raise RuntimeError("the device fell off the bus")
        time.sleep(self._step_time)
        assert echo.output is not None
        return echo.output

    def check(self, request: Request) -> None:
        """Any arguments will do."""

    def step_seconds(self, num_rows: int) -> float:
        return 0.001

    def extend_seconds(self) -> list[tuple[int, float]]:
        return []

    def prompt_logits(self, token_ids: list[int], source: list[int]) -> np.ndarray:
        return np.zeros((len(token_ids), VOCABULARY), np.float32)


def echo_engine(**options: object) -> Engine:
    return Engine(EchoRunner(**options))  # type: ignore[arg-type]
