"""Several sequences of one request, over the real runner: samples that share a prompt, and beam search."""

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from echo_runner import echo_engine

from jaxllm import LLM, SamplingParams
from jaxllm.cache.prefix import PrefixIndex
from jaxllm.core import FinishReason
from jaxllm.errors import RequestError

RECORDED = json.loads((Path(__file__).parent / "beam_search.json").read_text())
PAGE = 4
PROMPT = [5, 9, 31, 7, 7, 60, 2, 11, 8, 40]


def make_llm(**options: Any) -> LLM:
    settings: dict[str, Any] = {
        "max_num_seqs": 8, "max_num_batched_tokens": 32, "block_size": PAGE, "decode_steps": (1, 4),
        "stream_interval_ms": 10_000, "num_gpu_blocks_override": 121,
    }  # fmt: skip
    model = Path(__file__).parents[1] / "models" / "reference" / RECORDED["model"]
    return LLM(str(model), **(settings | options))


@pytest.fixture(scope="module", params=[True, False], ids=["cached", "uncached"])
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    with make_llm(enable_prefix_caching=request.param) as llm:
        yield llm
        load = llm.engine.load()
        assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)
        assert not llm.engine._groups
        assert not llm.engine._group_of


def params(**changes: Any) -> SamplingParams:
    return SamplingParams(**({"max_tokens": 9, "seed": 3, "ignore_eos": True, "detokenize": False} | changes))


def computed(llm: LLM) -> list[int]:
    """How many tokens each step that follows computes or draws; filled as they are committed."""
    steps: list[int] = []
    submit = llm.engine.runner.submit

    def note(plan: Any) -> Any:
        if plan.kind == "extend":
            steps.extend(row.count for row in plan.rows if row.start < len(row.request.prompt))
        return submit(plan)

    llm.engine.runner.submit = note  # type: ignore[method-assign]
    return steps


def samples(llm: LLM, **changes: Any) -> list[list[int]]:
    return [one.token_ids for one in llm.generate(PROMPT, params(**changes))[0].outputs]


def test_samples_are_those_of_their_index_alone(llm: LLM) -> None:
    """Whatever n is, and however the samples are batched."""
    five = samples(llm, n=5)
    assert samples(llm, n=2) == five[:2]
    assert samples(llm, n=1) == five[:1]
    assert len({tuple(sample) for sample in five}) == 5
    others = [PROMPT[3:], PROMPT]
    (_, again) = llm.generate(others, params(n=5))
    assert [one.token_ids for one in again.outputs] == five
    assert [one.index for one in again.outputs] == [0, 1, 2, 3, 4]
    assert samples(llm, n=3, temperature=0) == [samples(llm, temperature=0)[0]] * 3


@pytest.mark.parametrize("length", [1, PAGE, PAGE + 1, 10])
@pytest.mark.parametrize("max_tokens", [1, 6])
def test_the_prompt_is_computed_once(length: int, max_tokens: int) -> None:
    """By the first sample; each of the others computes its last token, however soon the first ends."""
    with make_llm(enable_prefix_caching=False) as llm:
        steps = computed(llm)
        (output,) = llm.generate(PROMPT[:length], params(n=4, max_tokens=max_tokens))
        assert sorted(steps, reverse=True) == [length, 1, 1, 1]
        assert [len(one.token_ids) for one in output.outputs] == [max_tokens] * 4
        steps.clear()
        llm.generate(PROMPT[:length], params(n=1))
        assert steps == [length], "nothing is kept for other requests"


def test_more_samples_than_slots_and_a_pool_that_is_short() -> None:
    with make_llm() as llm:
        expected = samples(llm, n=20, max_tokens=30)
    with make_llm(num_gpu_blocks_override=17, enable_prefix_caching=False) as llm:
        assert samples(llm, n=20, max_tokens=30) == expected
        load = llm.engine.load()
        assert load.preemptions > 0
        assert load.pages_free == load.pages_total


def test_best_of_keeps_the_likeliest(llm: LLM) -> None:
    every = llm.generate(PROMPT, params(n=6, logprobs=0))[0].outputs
    mean = [one.cumulative_logprob / len(one.token_ids) for one in every]
    order = sorted(range(6), key=lambda i: -mean[i])
    best = llm.generate(PROMPT, params(n=2, best_of=6))[0].outputs
    assert [one.token_ids for one in best] == [every[i].token_ids for i in order[:2]]
    assert [one.index for one in best] == [0, 1]
    assert best[0].logprobs is None
    assert best[0].cumulative_logprob == pytest.approx(every[order[0]].cumulative_logprob)


def test_prompt_logprobs_of_several_samples(llm: LLM) -> None:
    (output,) = llm.generate(PROMPT, params(n=3, prompt_logprobs=1))
    (alone,) = llm.generate(PROMPT, params(prompt_logprobs=1))
    assert output.prompt_logprobs is not None
    assert len(output.prompt_logprobs) == len(PROMPT)
    assert [set(p or ()) for p in output.prompt_logprobs] == [set(p or ()) for p in alone.prompt_logprobs or ()]


def test_the_prompt_of_several_samples_is_found_or_not_once(llm: LLM) -> None:
    llm.engine.flush_prefix_cache()
    before = llm.engine.load()
    prompt = [*PROMPT, 17]
    (output,) = llm.generate(prompt, params(n=4))
    assert output.num_cached_tokens == 0
    load = llm.engine.load()
    assert load.prefix_hits == before.prefix_hits
    assert load.prefix_queries - before.prefix_queries == len(prompt)
    cached = 10 if llm.engine.config.enable_prefix_caching else 0
    assert llm.generate(prompt, params(n=4))[0].num_cached_tokens == cached


def test_samples_end_each_at_its_own_end(llm: LLM) -> None:
    free = samples(llm, n=4)
    stop = free[2][3]
    outputs = llm.generate(PROMPT, params(n=4, stop_token_ids=[stop]))[0].outputs
    for one, whole in zip(outputs, free, strict=True):
        cut = whole.index(stop) + 1 if stop in whole else len(whole)
        assert one.token_ids == whole[:cut]
        assert one.finish_reason == ("stop" if stop in whole else "length")


def test_aborting_one_sample_and_all(llm: LLM) -> None:
    engine = llm.engine
    engine.add(engine.make_request(PROMPT, params(n=3, max_tokens=40), request_id="r"))
    deltas = [delta for _ in range(4) for delta in engine.step()]
    assert {delta.index for delta in deltas} == {0, 1, 2}
    assert engine.abort("r", FinishReason.STOP, 1)
    (end,) = [delta for delta in engine.take_ended() if delta.finish is not None]
    assert (end.request_id, end.index, end.more, end.finish) == ("r", 1, True, FinishReason.STOP)
    assert engine.abort("r")
    ends = [(delta.index, delta.more) for delta in engine.take_ended() if delta.finish is not None]
    assert sorted(ends, key=lambda end: end[1], reverse=True) == [(0, True), (2, False)]
    assert not engine.abort("r")
    while engine.has_work:
        assert engine.step() == []


def test_aborting_before_the_prompt_is_computed(llm: LLM) -> None:
    """The next sample takes the lead."""
    engine = llm.engine
    expected = samples(llm, n=3)
    engine.add(engine.make_request(PROMPT, params(n=3), request_id="r"))
    assert engine.load().waiting == 3
    engine.abort("r", index=0)
    drawn: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_work:
        for delta in engine.step():
            drawn[delta.index] += delta.token_ids
    assert [drawn[0], drawn[1], drawn[2]] == [[], *expected[1:]]


def test_streaming_samples(llm: LLM) -> None:
    expected = samples(llm, n=3)
    seen = list(llm.stream(PROMPT, params(n=3)))
    assert [one.token_ids for one in seen[-1].outputs] == expected
    assert len(seen) > 3
    for earlier, later in pairwise(seen):
        for a, b in zip(earlier.outputs, later.outputs, strict=True):
            assert b.token_ids[: len(a.token_ids)] == a.token_ids


def test_priority_and_cache_salt_offline() -> None:
    with make_llm(scheduling_policy="priority", max_num_seqs=1, decode_steps=(1,)) as llm:
        order = []
        submit = llm.engine.runner.submit

        def note(plan: Any) -> Any:
            order.extend(len(row.request.prompt) for row in plan.rows if row.fresh)
            return submit(plan)

        llm.engine.runner.submit = note  # type: ignore[method-assign]
        prompts = [PROMPT[:length] for length in (3, 4, 5)]
        llm.generate(prompts, params(max_tokens=2), priority=[2, 0, 1])
        assert order == [4, 5, 3]
        assert llm.generate(PROMPT, params(), cache_salt="a")[0].num_cached_tokens == 0
        assert llm.generate(PROMPT, params(), cache_salt="a")[0].num_cached_tokens > 0
        assert llm.generate(PROMPT, params(), cache_salt="b")[0].num_cached_tokens == 0
        with pytest.raises(RequestError, match="2 priorities for 3 prompts"):
            llm.generate(prompts, params(), priority=[1, 2])


def test_thinking_is_bounded_without_a_tokenizer(llm: LLM) -> None:
    thinking = params(thinking_token_budget=2, thinking_token_ids=(5, 6), logit_bias={9: 100}, max_tokens=4)
    (output,) = llm.generate([7, 5], thinking)
    assert output.outputs[0].token_ids == [9, 9, 6, 9]


# --- beam search ---


def search(llm: LLM, case: dict[str, Any], **changes: Any) -> Any:
    return SamplingParams(**({
        "use_beam_search": True, "n": case["width"], "max_tokens": case["max_new_tokens"], "ignore_eos": True,
        "stop_token_ids": case["stop_ids"], "length_penalty": case["length_penalty"], "detokenize": False,
        "early_stopping": case["early_stopping"],
    } | changes))  # fmt: skip


def test_beam_search_is_transformers_own(llm: LLM) -> None:
    """Every recorded search, all of them at once in eight slots."""
    cases = RECORDED["cases"]
    assert len(cases) > 50
    outputs = llm.generate([case["prompt"] for case in cases], [search(llm, case) for case in cases])
    ended = 0
    for case, output in zip(cases, outputs, strict=True):
        found = [one.token_ids for one in output.outputs]
        assert found == case["sequences"], case
        for one, score in zip(output.outputs, case["scores"], strict=True):
            got = one.cumulative_logprob / len(one.token_ids) ** case["length_penalty"]
            assert got == pytest.approx(score, abs=1e-3)
            stopped = one.token_ids[-1] in case["stop_ids"]
            assert one.finish_reason == ("stop" if stopped else "length")
            assert one.stop_reason == (one.token_ids[-1] if stopped else None)
            ended += stopped
    assert ended > 50


def test_a_beam_goes_on_from_its_parents_pages() -> None:
    with make_llm(enable_prefix_caching=False) as llm:
        steps = computed(llm)
        llm.generate(PROMPT, SamplingParams(use_beam_search=True, n=3, max_tokens=9, ignore_eos=True, detokenize=False))
        assert steps == [len(PROMPT), *[1] * (3 * 8)]


def test_a_beam_takes_over_its_parents_keys(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long prompt is hashed once, and not by every beam in every step."""
    hashed: list[int] = []
    key = PrefixIndex.key
    monkeypatch.setattr(PrefixIndex, "key", lambda *given: hashed.append(1) or key(*given))
    prompt = [3 + i % 50 for i in range(12 * PAGE)]
    llm.generate(prompt, SamplingParams(use_beam_search=True, n=3, max_tokens=9, ignore_eos=True, detokenize=False))
    assert 12 <= len(hashed) <= 12 + 3 * 9


def test_the_n_best_of_a_wider_search(llm: LLM) -> None:
    case = RECORDED["cases"][-1]
    (output,) = llm.generate([case["prompt"]], search(llm, case, n=1, best_of=case["width"]))
    assert [one.token_ids for one in output.outputs] == case["sequences"][:1]


def test_a_search_can_be_aborted(llm: LLM) -> None:
    engine = llm.engine
    case = RECORDED["cases"][0]
    settings = search(llm, case, max_tokens=30, stop_token_ids=[])
    engine.add(engine.make_request(case["prompt"], settings, request_id="b"))
    for _ in range(9):
        assert engine.step() == []
    assert engine.abort("b")
    ends = engine.take_ended()
    assert [(end.request_id, end.index, end.more) for end in ends] == [("b", 0, True), ("b", 1, False)]
    assert {end.finish for end in ends} == {FinishReason.ABORT}
    assert all(end.token_ids for end in ends), "what it had found so far"
    while engine.has_work:
        assert engine.step() == []


def test_a_search_too_wide_for_the_engine(llm: LLM) -> None:
    with pytest.raises(RequestError, match=r"11 beams and 0 ids that end them take the 22 most .* reports 20") as error:
        llm.generate(PROMPT, SamplingParams(use_beam_search=True, n=11, ignore_eos=True, detokenize=False))
    assert error.value.param == "n"


def test_scores_that_cannot_be_compared() -> None:
    engine = echo_engine()
    engine.config = engine.config.replace(logprobs_mode="raw_logits")
    for name, changes in {"use_beam_search": {"n": 2, "use_beam_search": True}, "best_of": {"best_of": 2}}.items():
        with pytest.raises(RequestError, match="this engine reports raw_logits") as error:
            engine.make_request([5], params(**changes))
        assert error.value.param == name
