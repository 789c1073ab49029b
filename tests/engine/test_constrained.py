"""Constrained requests in the loop: when masks are made, what is jumped over, and whom an error concerns."""

import time

import numpy as np
import pytest
from echo_runner import VOCABULARY, EchoRunner, answer, echo_engine
from languages import Language, choices

import jaxllm.engine.constrained
from jaxllm.constraints.constraint import ALLOWANCE
from jaxllm.core import Delta, FinishReason, Request, Row, SamplingParams
from jaxllm.engine import Engine
from jaxllm.engine.constrained import Masks, advance

WORDS = ((10, 11, 12, 13, 14, 15), (10, 11, 12, 20, 21), (500, 600))


@pytest.fixture(autouse=True)
def _jumps_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxllm.engine.constrained, "LEAST_JUMP", 2)


def ask(engine: Engine, name: str, language: Language | None, max_tokens: int = 40, **params) -> Request:
    request = engine.make_request([1, 2, 3], SamplingParams(max_tokens=max_tokens, **params), request_id=name)
    request.constraint = language
    engine.add(request)
    return request


def run(engine: Engine) -> dict[str, list[Delta]]:
    deltas: dict[str, list[Delta]] = {}
    while engine.has_work:
        for delta in engine.step():
            deltas.setdefault(delta.request_id, []).append(delta)
    assert engine.load().pages_free == engine.load().pages_total
    return deltas


def tokens(deltas: list[Delta], index: int = 0) -> list[int]:
    return [token for delta in deltas if delta.index == index for token in delta.token_ids]


def test_a_step_is_submitted_before_its_masks_are_made() -> None:
    runner = EchoRunner()
    order: list[str] = []

    def noting(what: str):
        method = getattr(runner, what)

        def noted(*args):
            order.append(what)
            return method(*args)

        return noted

    runner.submit, runner.collect, runner.draw = map(noting, ("submit", "collect", "draw"))  # type: ignore[method-assign]
    engine = Engine(runner)
    ask(engine, "r", Language([{5: 0, 6: 0, 7: 0}]), max_tokens=4)
    assert set(tokens(run(engine)["r"])) <= {5, 6, 7}
    cycle = ["submit", "collect", "draw"]
    assert order == ["submit", "draw", *cycle * 3, "collect"], "the device computes while masks are filled"
    assert all(plan.num_steps == 1 for plan in runner.plans)


def test_what_is_forced_comes_at_once_and_is_computed_as_a_chunk() -> None:
    engine = echo_engine()
    request = ask(engine, "r", choices(*WORDS[:2]))
    deltas = run(engine)["r"]
    text = tokens(deltas)
    assert tuple(text) in WORDS
    assert (deltas[-1].finish, deltas[-1].stop_token) == (FinishReason.STOP, None)
    assert [len(delta.token_ids) for delta in deltas] == [3, len(text) - 3], "to the choice, and from there to the end"
    assert request.num_preemptions == 0
    assert engine.load().generation_tokens == len(text) == deltas[-1].num_output
    chunks = [(row.start, row.tokens) for plan in engine.runner.plans[1:] for row in plan.rows if len(row.tokens) > 1]
    assert chunks == [(4, [11, 12])]


def test_log_probabilities_of_every_token_are_worth_drawing_it() -> None:
    engine = echo_engine()
    ask(engine, "r", choices(*WORDS[:2]), logprobs=0)
    deltas = run(engine)["r"]
    assert tuple(tokens(deltas)) in WORDS
    assert all(len(delta.token_ids) == 1 for delta in deltas)


@pytest.mark.parametrize("room", [1, 2, 3, 4, 5])
def test_forced_tokens_keep_within_max_tokens(room: int) -> None:
    engine = echo_engine()
    ask(engine, "r", choices(WORDS[0]), max_tokens=room)
    deltas = run(engine)["r"]
    assert tokens(deltas) == list(WORDS[0][:room])
    assert deltas[-1].finish is FinishReason.LENGTH


def test_the_last_token_of_a_text_ends_it_even_where_no_more_may_come() -> None:
    engine = echo_engine()
    ask(engine, "r", choices(WORDS[0]), max_tokens=len(WORDS[0]))
    assert run(engine)["r"][-1].finish is FinishReason.STOP


def test_a_few_forced_tokens_are_drawn_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxllm.engine.constrained, "LEAST_JUMP", 6)
    engine = echo_engine()
    ask(engine, "r", choices(WORDS[0]))  # five follow the first
    assert [len(delta.token_ids) for delta in run(engine)["r"]] == [1] * 6


def test_a_stop_id_among_forced_tokens_ends_the_request() -> None:
    engine = echo_engine()
    ask(engine, "r", choices(WORDS[0]), stop_token_ids=(13,))
    deltas = run(engine)["r"]
    assert tokens(deltas) == list(WORDS[0][:4])
    assert (deltas[-1].finish, deltas[-1].stop_token) == (FinishReason.STOP, 13)


def test_free_requests_beside_constrained_ones_say_what_they_say_alone() -> None:
    engine = echo_engine()
    for i in range(4):
        ask(engine, f"c{i}", Language([{5 + i: 1, 7: 1}, {8: 2}, {9: 0}]), max_tokens=30)
        ask(engine, f"f{i}", None, max_tokens=10 + 10 * i)
    deltas = run(engine)
    for i in range(4):
        assert tokens(deltas[f"f{i}"]) == answer([1, 2, 3], 10 + 10 * i)
        text = tokens(deltas[f"c{i}"])
        assert len(text) == 30
        assert Language([{5 + i: 1, 7: 1}, {8: 2}, {9: 0}]).speaks(text)
    steps = [plan.num_steps for plan in engine.runner.plans if plan.kind == "decode"]
    assert 1 in steps, "while some are constrained"
    assert steps[-1] == 4, "and when none is left"


def test_samples_go_their_own_ways() -> None:
    engine = echo_engine()
    language = choices(*WORDS)
    ask(engine, "r", language, n=3, temperature=1.0)
    deltas = run(engine)["r"]
    assert language.state == 0, "what was asked for stays where it was"
    assert all(tuple(tokens(deltas, index)) in WORDS for index in range(3))
    assert [delta.more for delta in deltas if delta.finish is not None] == [True, True, False]


def test_a_grammar_that_costs_too_much_ends_its_request_alone() -> None:
    engine = echo_engine()
    ask(engine, "costly", Language([{5: 0, 6: 0}], fuel=3))
    ask(engine, "fine", Language([{5: 0, 6: 0}]))
    ask(engine, "free", None)
    deltas = run(engine)
    assert deltas["costly"][-1].finish is FinishReason.ERROR
    assert deltas["costly"][-1].error == "out of fuel"
    assert tokens(deltas["costly"]) == tokens(deltas["fine"])[:3]
    assert (len(tokens(deltas["fine"])), deltas["fine"][-1].finish) == (40, FinishReason.LENGTH)
    assert tokens(deltas["free"]) == answer([1, 2, 3], 40)


class Broken(Language):
    """A constraint with a fault of its own."""

    def accept(self, token: int) -> bool:
        raise ZeroDivisionError("in the parser")


class Mute(Language):
    """Allows nothing."""

    def fill(self, mask: np.ndarray) -> None:
        mask[:] = 0


@pytest.mark.parametrize(("kind", "why"), [(Broken, "ZeroDivisionError: in the parser"), (Mute, "allows no token")])
def test_a_faulty_constraint_harms_nobody_else(kind: type[Language], why: str) -> None:
    engine = echo_engine()
    ask(engine, "faulty", kind([{5: 0, 6: 0}]), n=2)
    ask(engine, "free", None)
    deltas = run(engine)
    ends = [delta for delta in deltas["faulty"] if delta.finish is not None]
    assert [delta.finish for delta in ends] == [FinishReason.ERROR] * 2
    assert all(why in str(delta.error) for delta in ends)
    assert tokens(deltas["free"]) == answer([1, 2, 3], 40)


def test_an_abort_between_steps_leaves_masks_and_pages_in_order() -> None:
    engine = echo_engine()
    ask(engine, "gone", Language([{5: 0, 6: 0}]))
    ask(engine, "stays", choices(*WORDS))
    before = [delta for _ in range(2) for delta in engine.step()]
    assert engine.abort("gone")
    after = run(engine)
    assert [delta.finish for delta in after["gone"]] == [FinishReason.ABORT]
    assert tuple(tokens([delta for delta in [*before, *after["stays"]] if delta.request_id == "stays"])) in WORDS


def test_rows_are_filled_by_several_threads_as_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Masks, "THREADS", 4)
    draw = np.random.default_rng(time.time_ns())
    masks = Masks(40, VOCABULARY)
    for size in (40, 3, 17):
        wanted = [draw.choice(VOCABULARY, draw.integers(1, 200), replace=False).tolist() for _ in range(size)]
        free = draw.random(size) < 0.3
        requests = [
            Request(
                "r", [1], SamplingParams(), (), 9, seed=0, constraint=None if f else Language([dict.fromkeys(w, 0)])
            )
            for w, f in zip(wanted, free, strict=True)
        ]
        filled, failed = masks.fill([row(request) for request in requests])
        assert not failed
        for i in range(40 if not free.all() else 0):
            bits = np.unpackbits(filled[i].view(np.uint8), bitorder="little")[:VOCABULARY]
            expected = np.ones(VOCABULARY) if i >= size or free[i] else np.isin(np.arange(VOCABULARY), wanted[i])
            np.testing.assert_array_equal(bits, expected)


class Slow(Language):
    """Takes longer than a step's masks should, and tells whether that is its own fault; how: what was asked of it."""

    def __init__(self, overdrawn: bool):
        super().__init__([{5: 0}])
        self.overdrawn = overdrawn
        self.how: list[str] = []

    def fill(self, mask: np.ndarray) -> None:
        self.how.append("apart")
        super().fill(mask)

    def begin(self, mask: np.ndarray) -> None:
        self.how.append("together")
        super().fill(mask)
        time.sleep(2 * ALLOWANCE)

    def end(self, mask: np.ndarray) -> None: ...


@pytest.mark.parametrize("overdrawn", [False, True])
def test_rows_are_filled_apart_for_as_long_as_somebody_is_to_blame(
    monkeypatch: pytest.MonkeyPatch, overdrawn: bool
) -> None:
    monkeypatch.setattr(Masks, "TRUST", 3)
    masks, slow = Masks(4, VOCABULARY), Slow(overdrawn)
    request = Request("r", [1], SamplingParams(), (), 9, seed=0, constraint=slow)
    for _ in range(7):
        masks.fill([row(request)])
    honest = ["together", "apart", *["together"] * 4, "apart"]
    assert slow.how == (["together", *["apart"] * 6] if overdrawn else honest)


def row(request: Request) -> Row:
    return Row(request, 0, 0, 1, [], False, True, [], [])


def test_no_masks_where_nothing_is_forbidden() -> None:
    request = Request("r", [1], SamplingParams(), (), 9, seed=0, constraint=choices((1, 2)))
    request.num_foretold = 1  # what the row draws is known already
    assert Masks(4, 100).fill([row(request)]) == (None, [])


def test_advancing_by_nothing_that_is_allowed_is_an_error() -> None:
    request = Request("r", [1], SamplingParams(), (), 9, seed=0, constraint=choices((1, 2)))
    assert advance(request, [3]) == ([], FinishReason.ERROR, "3 is none of [1]")
