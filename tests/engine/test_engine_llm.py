"""The offline API without a device: what it does around the engine when things are many, odd or broken."""

import gc
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from typing import Any

import pytest
from echo_runner import answer, echo_engine

from jaxllm import LLM, SamplingParams
from jaxllm.core import FinishReason
from jaxllm.engine import Engine, scheduler
from jaxllm.errors import ConfigError, EngineDeadError

TOKENS = SamplingParams(max_tokens=20, detokenize=False)


@pytest.fixture
def make_llm(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**options: object) -> LLM:
        monkeypatch.setattr(Engine, "start", lambda *_, **__: echo_engine(**options))
        return LLM("echo")

    return make


def test_more_prompts_than_the_queue_holds(make_llm: Any) -> None:
    llm = make_llm(max_queued=3, max_num_seqs=2)
    prompts = [[i] for i in range(60)]
    outputs = llm.generate(prompts, TOKENS)
    assert [output.outputs[0].token_ids for output in outputs] == [answer(prompt, 20) for prompt in prompts]


def test_samples_take_no_place_of_the_queue(make_llm: Any) -> None:
    llm = make_llm(max_queued=3, max_num_seqs=2)
    prompts = [[i] for i in range(12)]
    for output, prompt in zip(llm.generate(prompts, replace(TOKENS, n=5)), prompts, strict=True):
        assert [one.token_ids for one in output.outputs] == [answer(prompt, 20)] * 5


def test_parameters_for_each_prompt(make_llm: Any) -> None:
    params = [SamplingParams(max_tokens=n, detokenize=False) for n in (3, 1, 9)]
    outputs = make_llm().generate([[1], [2], [3]], params)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [3, 1, 9]


def test_a_model_without_tokenizer_answers_in_token_ids(make_llm: Any) -> None:
    llm = make_llm()
    assert llm.generate([5], TOKENS)[0].outputs[0].token_ids == answer([5], 20)
    with pytest.raises(ConfigError, match=r"no tokenizer in .*detokenize=False"):
        llm.generate([5], SamplingParams())
    with pytest.raises(ConfigError, match="no tokenizer"):
        llm.generate("text", TOKENS)


def test_a_dead_engine_raises_and_stays_dead(make_llm: Any) -> None:
    llm = make_llm(fail_at=4, decode_steps=(1,))
    for _ in range(2):
        with pytest.raises(EngineDeadError, match="the device fell off the bus"):
            llm.generate([[1], [2]], TOKENS)


def test_an_interrupt_ends_the_call_and_not_the_engine(make_llm: Any, request: pytest.FixtureRequest) -> None:
    # A shell that starts the tests in the background has them ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    llm = make_llm(step_time=0.01, decode_steps=(1,))
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2]], SamplingParams(max_tokens=120, detokenize=False))
    timer.join()
    assert llm.generate([7], TOKENS)[0].outputs[0].token_ids == answer([7], 20)
    load = llm.engine.load()
    assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)


def test_an_interrupt_loses_no_token_of_a_stream_that_goes_on(
    make_llm: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    llm = make_llm(decode_steps=(1,))
    stream = llm.stream([7], TOKENS)
    next(stream)
    step = llm.engine.step

    def step_and_interrupt() -> Any:
        deltas = step()
        if any(len(delta.token_ids) for delta in deltas if delta.request_id == "0"):
            signal.raise_signal(signal.SIGINT)
        return deltas

    monkeypatch.setattr(llm.engine, "step", step_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        llm.generate([[1], [2]], TOKENS)
    monkeypatch.undo()
    *_, last = stream
    assert last.outputs[0].token_ids == answer([7], 20)


def test_an_interrupt_while_prompts_are_queued(
    make_llm: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    llm = make_llm()
    for victim in ("add", "abort"):  # the second while those of the first are ended
        part = getattr(llm.engine._scheduler, victim)

        def interrupted(*given: Any, part: Any = part, **named: Any) -> Any:
            value = part(*given, **named)
            signal.raise_signal(signal.SIGINT)
            return value

        monkeypatch.setattr(llm.engine._scheduler, victim, interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[1], [2], [3]], TOKENS)
    monkeypatch.undo()
    assert llm.generate([7], TOKENS)[0].outputs[0].token_ids == answer([7], 20)
    load = llm.engine.load()
    assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)


def test_a_stream_that_the_collector_ends_within_a_step(make_llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was not read to its end, in a cycle: the collector may come upon it anywhere."""
    llm = make_llm()
    loop: list[Any] = [llm.stream([5], replace(TOKENS, max_tokens=100))]
    loop.append(loop)
    next(loop[0])
    del loop
    accept, collected = scheduler.accept, []

    def collect_and_accept(*given: Any) -> Any:
        if not collected:
            collected.append(gc.collect())
        return accept(*given)

    monkeypatch.setattr(scheduler, "accept", collect_and_accept)
    assert llm.generate([7], TOKENS)[0].outputs[0].token_ids == answer([7], 20)
    assert collected
    load = llm.engine.load()
    assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)


def test_the_reason_of_a_failed_sample_is_told(make_llm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = make_llm(decode_steps=(1,))
    step = llm.engine.step

    def step_and_blame() -> Any:
        deltas = step()
        for delta in deltas:
            if delta.index == 0 and delta.finish is not None:
                delta.finish, delta.error = FinishReason.ERROR, "its form costs too much"
        return deltas

    monkeypatch.setattr(llm.engine, "step", step_and_blame)
    (output,) = llm.generate([[1]], replace(TOKENS, n=2))
    assert [one.finish_reason for one in output.outputs] == ["error", "length"]
    assert output.error == "its form costs too much"


def test_progress_counts_the_answers(make_llm: Any, caplog: pytest.LogCaptureFixture) -> None:
    llm = make_llm()
    with caplog.at_level("INFO", logger="jaxllm.progress"):
        llm.generate([[i] for i in range(20)], TOKENS, use_tqdm=False)
        assert "generating" not in caplog.text
        llm.generate([[i] for i in range(20)], TOKENS)
    assert "generating: 20 of 20" in caplog.text


def test_a_closed_llm_says_so(make_llm: Any) -> None:
    with make_llm() as llm:
        llm.generate([1], TOKENS)
    with pytest.raises(RuntimeError, match="this LLM is closed"):
        llm.generate([1], TOKENS)


def test_unknown_keywords_are_errors_that_offer_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown argument 'max_num_seq'; did you mean 'max_num_seqs'"):
        LLM("demo", max_num_seq=3)


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, jaxllm\n"
        "heavy = {'jax', 'numpy', 'transformers', 'grpc'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert all(hasattr(jaxllm, name) and name in dir(jaxllm) for name in jaxllm.__all__)\n"
        "assert not hasattr(jaxllm, 'Nonsense')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
