"""Logits processors: ours against transformers' own and against plain numpy; the protocol they share with users'."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.core import Request, SamplingParams
from jaxllm.errors import ConfigError, RequestError
from jaxllm.runner.packing import SeedLayout
from jaxllm.sampling import LogitsProcessor, Processors, RowParams, load, make_processors, narrow

V = 50
SLOTS = 6
CHUNK = 8
SCRIPT = Path(__file__).parents[2] / "scripts" / "damp_repeats.py"
RECORDED = Path(__file__).parent / "reference" / "transformers.npz"


def _example() -> Any:
    """The processor that scripts/damp_repeats.py shows how to write."""
    specification = importlib.util.spec_from_file_location("damp_repeats", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.Damp


Damp = _example()


class Bench:
    """SLOTS slots of some processors, compiled once: what seed, gather, apply, update and scatter do together."""

    def __init__(self, processors: Processors):
        self.processors = processors
        self.layout = SeedLayout(processors.width, CHUNK)
        self.state = processors.new_state(SLOTS + 1)
        self._seed = jax.jit(self._seed_slot)
        self._step = jax.jit(self._step_rows)
        self.active = np.zeros(SLOTS, np.int32)

    def _seed_slot(self, state, packed):
        head, arguments, ids = self.layout.split(packed)
        drawn = ids < 0
        tokens = jnp.where(drawn, -1 - ids, ids)
        return self.processors.seed(state, head[0], head[1] != 0, arguments, tokens, drawn, head[2])

    def _step_rows(self, state, active, logits, num_drawn, tokens):
        slots = jnp.arange(SLOTS, dtype=jnp.int32)
        rows = self.processors.gather(state, slots, active)
        changed = self.processors.apply(rows, logits, num_drawn)
        return changed, self.processors.scatter(state, slots, self.processors.update(rows, tokens))

    def admit(self, request: Request, slot: int) -> None:
        reading = self.processors.read(request)
        self.active[slot] = reading.active
        if reading.active:
            prompt = self.processors.reads_prompt(reading.active)
            for packed in self.layout.pack(request, slot, reading.arguments, prompt):
                self.state = self._seed(self.state, packed)

    def apply(self, logits: np.ndarray, num_drawn: Any = 0, tokens: Any = None) -> np.ndarray:
        """Logits [SLOTS, V] as the processors leave them; with tokens [SLOTS], they are drawn thereafter."""
        drawn = np.broadcast_to(np.asarray(num_drawn, np.int32), (SLOTS,))
        given = np.zeros(SLOTS, np.int32) if tokens is None else np.asarray(tokens, np.int32)
        changed, state = self._step(self.state, self.active, logits, drawn, given)
        if tokens is not None:
            self.state = state
        return np.asarray(changed)


def request(prompt: list[int], output: list[int] = (), stop_ids: tuple[int, ...] = (), **params: Any) -> Request:
    settings = SamplingParams(**({"max_tokens": None} | params))
    return Request("r", list(prompt), settings, stop_ids, 1000, seed=0, output=list(output))


@pytest.fixture(scope="module")
def ours() -> Bench:
    return Bench(make_processors(V))


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    return dict(np.load(RECORDED))


def each_row(bench: Bench, recorded: dict[str, np.ndarray], params_of: Any) -> np.ndarray:
    """What our processors make of every recorded draw, SLOTS at a time."""
    results = []
    for at in range(0, len(recorded["logits"]), SLOTS):
        rows = range(at, at + SLOTS)
        for slot, i in enumerate(rows):
            output = recorded["output"][i][: recorded["num_output"][i]].tolist()
            bench.admit(request(recorded["prompt"][i].tolist(), output, **params_of(i)), slot)
        results.append(bench.apply(recorded["logits"][at : at + SLOTS], recorded["num_output"][at : at + SLOTS]))
    return np.concatenate(results)


def test_repetition_penalty_as_transformers(ours: Bench, recorded: dict[str, np.ndarray]) -> None:
    got = each_row(ours, recorded, lambda i: {"repetition_penalty": float(recorded["repetition"][i])})
    np.testing.assert_allclose(got, recorded["repeated"], rtol=1e-6)
    assert (got != recorded["logits"]).any(1).sum() == (recorded["repetition"] != 1).sum()


def test_logit_bias_as_transformers(ours: Bench, recorded: dict[str, np.ndarray]) -> None:
    def bias(i: int) -> dict[str, Any]:
        pairs = zip(recorded["bias_ids"][i].tolist(), recorded["bias"][i].tolist(), strict=True)
        return {"logit_bias": dict(pairs)}

    np.testing.assert_allclose(each_row(ours, recorded, bias), recorded["biased"], rtol=1e-6)


def test_min_tokens_as_transformers(ours: Bench, recorded: dict[str, np.ndarray]) -> None:
    got = each_row(
        ours, recorded,
        lambda i: {"min_tokens": int(recorded["least"][i]), "stop_ids": tuple(recorded["stop_ids"][i].tolist())},
    )  # fmt: skip
    np.testing.assert_array_equal(got, recorded["held"])
    assert np.isinf(got).any(1).sum() > 10


def test_bad_words_as_transformers(ours: Bench, recorded: dict[str, np.ndarray]) -> None:
    def words(i: int) -> dict[str, Any]:
        return {"bad_words_ids": [[t for t in word if t >= 0] for word in recorded["words"][i].tolist()]}

    got = each_row(ours, recorded, words)
    np.testing.assert_array_equal(got, recorded["censored"])
    assert np.isinf(got).sum(1).max() == 2, "a word of several tokens completed, beside the single one"


def test_temperature_and_filters_as_transformers(recorded: dict[str, np.ndarray]) -> None:
    logits = recorded["logits"]
    n = len(logits)
    neutral = {
        "temperature": np.ones(n, np.float32), "top_k": np.zeros(n, np.int32), "top_p": np.ones(n, np.float32),
        "min_p": np.zeros(n, np.float32), "seed": np.zeros((n, 2), np.uint32), "sample_index": np.zeros(n, np.int32),
    }  # fmt: skip
    for name, changes in {
        "tempered": {"temperature": recorded["temperature"]},
        "top_k": {"top_k": recorded["num_top"]},
        "top_p": {"top_p": recorded["nucleus"]},
        "min_p": {"min_p": recorded["least_p"]},
    }.items():
        got = jax.jit(narrow)(logits, RowParams(**(neutral | changes)))
        np.testing.assert_allclose(got, recorded[name], rtol=1e-6, err_msg=name)


def by_numpy(logits: np.ndarray, r: Request, num_drawn: int) -> np.ndarray:
    """One row, as the definitions read."""
    p, x = r.params, logits.astype(np.float64)
    if p.allowed_token_ids is not None:
        x[[t for t in range(V) if t not in p.allowed_token_ids]] = -np.inf
    known = r.prompt + r.output
    for word in p.bad_words_ids:
        if len(word) == 1 or tuple(known[1 - len(word) :]) == word[:-1]:
            x[word[-1]] = -np.inf
    if num_drawn < p.min_tokens:
        x[list(r.stop_ids)] = -np.inf
    for token, value in p.logit_bias.items():
        x[token] += value
    for token in set(known):
        x[token] = x[token] / p.repetition_penalty if x[token] > 0 else x[token] * p.repetition_penalty
    for token in set(r.output):
        x[token] -= p.frequency_penalty * r.output.count(token) + p.presence_penalty
    return x


tokens = st.integers(0, V - 1)
few = st.integers(0, 5)  # so that they repeat and words are met
words = st.lists(st.lists(few, min_size=1, max_size=4), max_size=4)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    """Any of our parameters in any combination, each left alone half of the time."""
    choices = {
        "repetition_penalty": st.floats(0.2, 3),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(tokens, st.floats(-100, 100), max_size=6),
        "allowed_token_ids": st.lists(tokens, min_size=8, max_size=30, unique=True),
        "bad_words_ids": words.filter(lambda words: [w[0] for w in words if len(w) == 1].__len__() < 8),
        "min_tokens": st.integers(0, 6),
    }
    params = {name: draw(choice) for name, choice in choices.items() if draw(st.booleans())}
    stop_ids = tuple(draw(st.lists(tokens, max_size=4, unique=True)))
    prompt = draw(st.lists(few, min_size=1, max_size=20))
    try:
        return request(prompt, draw(st.lists(few, max_size=12)), stop_ids, **params)
    except RequestError:  # every allowed token is a bad word
        return request(prompt)


@settings(max_examples=40, deadline=None)
@given(st.lists(requests(), min_size=SLOTS, max_size=SLOTS), st.integers(0, 2**32 - 1))
def test_any_parameters_together(ours: Bench, rows: list[Request], seed: int) -> None:
    """After admission (a preempted request's output known), and after three more tokens drawn one at a time."""
    rng = np.random.default_rng(seed)
    for slot, row in enumerate(rows):
        ours.admit(row, slot)
    for _ in range(4):
        logits = rng.normal(0, 5, (SLOTS, V)).astype(np.float32)
        drawn = rng.integers(0, 6, SLOTS)
        got = ours.apply(logits, [len(row.output) for row in rows], drawn)
        for i, row in enumerate(rows):
            expected = by_numpy(logits[i], row, len(row.output))
            np.testing.assert_allclose(got[i], expected, rtol=2e-5, atol=2e-4, err_msg=str(row.params))
            if ours.active[i] == 0:
                np.testing.assert_array_equal(got[i], logits[i])
            row.output.append(int(drawn[i]))


def test_counts_do_not_overflow(ours: Bench) -> None:
    ours.admit(request([1], [7] * 40_000, frequency_penalty=1.0), 0)
    got = ours.apply(np.zeros((SLOTS, V), np.float32), tokens=[7] * SLOTS)
    assert got[0, 7] == -32767
    assert ours.apply(np.zeros((SLOTS, V), np.float32))[0, 7] == -32767


START, END = 8, 9


@pytest.mark.parametrize(
    ("prompt", "output", "forced_after"),
    [
        ([1, START], [], 3),  # the template started it
        ([1, START, 4, 4], [5], 2),  # what the prompt thought costs nothing
        ([1, START, 4, END], [], None),
        ([1], [], None),
        ([1], [START], 3),
        ([1], [START, 5, 5, 5], 0),
        ([1], [START, 5, END], None),
        ([1, START] + [4] * 20, [5] * 9, 0),
        ([1, START, 3, END], [2, START, 5], 2),
    ],
)
def test_thinking_ends_when_its_budget_is_spent(
    ours: Bench, prompt: list[int], output: list[int], forced_after: int | None
) -> None:
    ours.admit(request(prompt, output, thinking_token_budget=3, thinking_token_ids=(START, END)), 2)
    logits = np.random.default_rng(0).normal(0, 1, (SLOTS, V)).astype(np.float32)
    for count in range(6):
        got = ours.apply(logits, tokens=[5] * SLOTS)[2]
        if forced_after is not None and count >= forced_after:
            assert np.flatnonzero(got > -np.inf).tolist() == [END]
            ours.apply(logits, tokens=[END] * SLOTS)
            np.testing.assert_array_equal(ours.apply(logits, tokens=[5] * SLOTS)[2], logits[2])
            return
        np.testing.assert_array_equal(got, logits[2])
    assert forced_after is None


# --- users' own ---


def test_a_users_processor() -> None:
    """State from drawn tokens alone, rebuilt after a preemption as it was; rows that do not ask are left alone."""
    bench = Bench(make_processors(V, [Damp]))
    argument = {"strength": 2.0}
    bench.admit(request([3, 3, 3], logits_processors={"damp": argument}), 0)
    bench.admit(request([3, 3, 3], frequency_penalty=1.0), 1)
    logits = np.zeros((SLOTS, V), np.float32)
    drawn = [4, 4, 6]
    heat = np.zeros(V)
    for token in drawn:
        np.testing.assert_allclose(bench.apply(logits, tokens=[token] * SLOTS)[0], -2 * heat)
        heat = heat * 0.5
        heat[token] += 1
    bench.admit(request([3, 3, 3], drawn, logits_processors={"damp": argument}), 5)
    got = bench.apply(logits)
    np.testing.assert_allclose(got[0], -2 * heat)
    np.testing.assert_allclose(got[5], -2 * heat)
    np.testing.assert_allclose(got[1, [3, 4, 6]], [0, -2, -1])
    assert (got[2] == 0).all()


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ({"damp": {}}, r"damp: KeyError: 'strength'"),
        ({"damp": 3}, "damp: AttributeError"),
        ({"damp": {"strength": "much"}}, "strength is <U4, and it must be float32"),
        ({"damp": {"strength": [1.0, 2.0]}}, "damp: ValueError"),
        ({"dampen": {}}, "there is no 'dampen'; did you mean 'damp'?"),
        ({"penalties": {}}, "there is no 'penalties'; those of this engine: damp"),
    ],
)
def test_arguments_that_a_processor_does_not_take(argument: dict[str, Any], says: str) -> None:
    processors = make_processors(V, [Damp])
    with pytest.raises(RequestError, match=says) as raised:
        processors.read(request([1], logits_processors=argument))
    assert raised.value.param == "logits_processors"


def test_no_processors_of_ones_own() -> None:
    with pytest.raises(RequestError, match="there is no 'damp'; those of this engine: none; name them with"):
        make_processors(V).read(request([1], logits_processors={"damp": 1}))


def test_how_a_processor_is_named() -> None:
    assert load("jaxllm.sampling.bias:LogitBias", V).name == "logit_bias"
    assert isinstance(load(Damp, V), Damp)
    for what, why in (
        ("jaxllm.sampling.bias", "package.module:Class"), ("no.such:Thing", "No module named 'no'"),
        ("jaxllm.sampling.bias:Nothing", "has no attribute 'Nothing'"), ("math:floor", "no subclass"),
        (dict, "no subclass"), (LogitsProcessor, "has no `name`"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            load(what, V)
    with pytest.raises(ConfigError, match="names must differ"):
        make_processors(V, [Damp, Damp])


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({}, "has no `name`"),
        ({"name": "mine", "parse": lambda self, argument: {}}, "lacks `apply`"),
        ({"name": "mine", "apply": lambda self, logits, *_: logits}, "lacks `parse`"),
        (
            {"name": "mine", "__init__": lambda self, vocab_size: None},
            r"no dictionary `parameters`.*super\(\).__init__",
        ),
        ({"name": "mine", "__init__": lambda self: None}, "failed: TypeError"),
    ],
)
def test_a_processor_that_is_not_whole_is_refused(members: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(type("Mine", (LogitsProcessor,), members), V)


def test_until_when_processors_act() -> None:
    processors = make_processors(V)
    assert processors.read(request([1])).until == 0
    assert processors.read(request([1], min_tokens=4)).until == 4
    assert processors.read(request([1], [1, 2, 3, 4], min_tokens=4))[0] == 0
    assert processors.read(request([1], min_tokens=4, presence_penalty=1.0)).until == math.inf
