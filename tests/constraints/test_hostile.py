"""What is asked for to do harm ends in an error that says what is wrong, soon, and no one else waits."""

import importlib
import signal
import threading
import time
from collections.abc import Callable

import pytest

from jaxllm.constraints import Compiler, trial
from jaxllm.errors import RequestError
from jaxllm.structured_outputs import StructuredOutputs


def _nested(depth: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def _chain(length: int, link: Callable[[dict[str, str]], object]) -> dict[str, object]:
    links = {f"a{i}": link({"$ref": f"#/$defs/a{i + 1}"}) for i in range(length)}
    return {"$ref": "#/$defs/a0", "$defs": {**links, f"a{length}": {"type": "string"}}}


def _lark_chain(length: int) -> str:
    return "\n".join(("start: r0", *(f"r{i}: r{i + 1}" for i in range(length)), f'r{length}: "a"'))


HOSTILE: dict[str, Callable[[], StructuredOutputs]] = {
    "nested": lambda: StructuredOutputs(json=_nested(200)),
    "nested beyond Python": lambda: StructuredOutputs(json="[" * 100_000),
    "references": lambda: StructuredOutputs(json=_chain(10_000, lambda reference: reference)),
    "references in arrays": lambda: StructuredOutputs(
        json=_chain(10_000, lambda reference: {"type": "array", "items": reference})
    ),
    "a circle": lambda: StructuredOutputs(
        json={"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    ),
    "a circle of intersections": lambda: StructuredOutputs(json={"allOf": [{"$ref": "#"}, {"type": "object"}]}),
    "exponentially many": lambda: StructuredOutputs(
        json={"allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(3)]} for i in range(12)]}
    ),
    "a large automaton": lambda: StructuredOutputs(json={"type": "integer", "multipleOf": 1_000_003}),
    "many properties": lambda: StructuredOutputs(
        json={"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(20_000)}}
    ),
    "too many values": lambda: StructuredOutputs(json={"enum": [f"value{i:09d}" for i in range(100_000)]}),
    "a regular expression": lambda: StructuredOutputs(regex="(" * 5000 + "a" + ")" * 5000),
    "rules": lambda: StructuredOutputs(grammar=_lark_chain(30_000)),
    "parentheses": lambda: StructuredOutputs(grammar="start: " + "(" * 20_000 + '"a"' + ")" * 20_000),
    "doubling": lambda: StructuredOutputs(
        grammar="\n".join(("start: R0", *(f"R{i}: R{i + 1} R{i + 1}" for i in range(60)), 'R60: "a"'))
    ),
    "complements": lambda: StructuredOutputs(grammar="start: A\nA: /.*a.{15}/ & /.*b.{14}/ & ~/.*c.{13}/"),
    "endless": lambda: StructuredOutputs(grammar="start: start"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_are_refused(name: str, compiler: Compiler) -> None:
    """How long it takes is bounded in the processor's time; the clock's is given room for a busy machine."""
    began = time.monotonic()
    with pytest.raises(RequestError, match="structured_outputs") as raised:
        compiler.compile(HOSTILE[name](), ())
    assert time.monotonic() - began < 15
    assert len(str(raised.value)) < 1000
    compiler.compile(StructuredOutputs(choice=(f"after {name}",)), ())  # and then all is as before


def test_others_are_not_held_up(compiler: Compiler) -> None:
    """While one is tried out and refused, other threads run, and other forms are compiled."""
    longest, refused, done = 0.0, [], threading.Event()

    def hostile() -> None:
        for name in ("a large automaton", "references in arrays"):
            try:
                compiler.compile(HOSTILE[name](), ())
            except RequestError as error:
                refused.append(error)
        done.set()

    thread = threading.Thread(target=hostile)
    thread.start()
    compiled = 0
    while not done.is_set():
        began = time.thread_time()
        compiler.compile(StructuredOutputs(regex=f"a{{{compiled + 1}}}"), ())
        longest = max(longest, time.thread_time() - began)
        compiled += 1
    thread.join()
    assert len(refused) == 2
    assert compiled >= 5
    assert longest < 0.5


def test_what_was_compiled_is_kept_and_the_oldest_forgotten(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxllm.constraints.compiler.MAX_CACHED", 2)
    tried: list[str] = []
    run = compiler._parts()[2].run
    monkeypatch.setattr(compiler._parts()[2], "run", lambda grammar: (tried.append(grammar), run(grammar)))
    forms = [StructuredOutputs(choice=(f"kept {i}",)) for i in range(3)]
    for index in (0, 1, 0, 2, 0, 1):
        compiler.compile(forms[index], ())
    assert len(tried) == 4, "0, 1, 2, and 1 again, as 0 was of use meanwhile"


def test_a_form_that_is_given_up_while_it_is_compiled_again_is_counted_whole(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = StructuredOutputs(choice=("counted",))
    module = "jaxllm.constraints.compiler"
    monkeypatch.setattr(f"{module}.SPREAD", 8)
    compile_grammar = importlib.import_module(module).compile_grammar

    def compile_while_another_gives_it_up(*arguments: object) -> object:
        monkeypatch.setattr(f"{module}.compile_grammar", compile_grammar)
        compiler.compile(StructuredOutputs(choice=("another",)), ())
        assert form not in compiler._cache
        return compile_grammar(*arguments)

    monkeypatch.setattr(f"{module}.MAX_CACHED", 1)
    held = [compiler.compile(form, ())]
    monkeypatch.setattr(f"{module}.compile_grammar", compile_while_another_gives_it_up)
    held.append(compiler.compile(form, ()))
    assert compiler._cached_size == sum(known.size * len(of.matchers) for known, of in compiler._cache.items())
    assert len(compiler._cache[form].matchers) == 2


def test_an_interrupted_trial_leaves_no_answer_behind(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next grammar would be judged by it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    send = trial._send

    def send_and_interrupt(*given: object) -> None:
        send(*given)
        signal.raise_signal(signal.SIGINT)

    try:
        monkeypatch.setattr(trial, "_send", send_and_interrupt)
        for _ in range(trial.WORKERS):
            with pytest.raises(KeyboardInterrupt):
                compiler.compile(StructuredOutputs(regex=f"never asked before {time.monotonic_ns()}"), [0])
    finally:
        monkeypatch.undo()
        signal.signal(signal.SIGINT, before)
    for _ in range(trial.WORKERS):
        with pytest.raises(RequestError, match="cannot be compiled"):
            compiler.compile(StructuredOutputs(regex=f"((({time.monotonic_ns()}"), [0])
    for _ in range(trial.WORKERS):
        compiler.compile(StructuredOutputs(regex=f"good {time.monotonic_ns()}"), [0])
