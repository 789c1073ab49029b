"""Grammars are tried out in a process of their own before this one compiles them.

llguidance bounds most of what a grammar can cost, but not all: a long chain of rules overflows its stack, and some
numbers make automata that take minutes or all memory. Such a grammar costs the trial's process, and its request an
error; the engine, and what others ask for, go on.

Run as a program it is that process: over standard input come the tokens and then the grammars, each a pickle, and
over standard output goes an error for each, "" for none.
"""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
import weakref
from typing import IO, Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from jaxllm.constraints.vocabulary import TokenTable
from jaxllm.errors import RequestError

LIMITS = LLParserLimits(
    initial_lexer_fuel=1_000_000,
    step_lexer_fuel=200_000,  # about 15 ms
    step_max_items=50_000,
    max_lexer_states=50_000,  # 100 MB or so, of all answers by one grammar together
    verbose_errors=False,
)
CPU_SECONDS = 1.0
LOOK = 0.01  # seconds between two looks at the clock
WALL_SECONDS = 20.0  # where the machine is too busy to give it that much
MEMORY = 1 << 30  # beyond what the tokens take
STACK = 1 << 20  # an eighth of what threads have here: what fits there fits here
WORKERS = 2


def compile_grammar(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    """Raises RequestError for what is no grammar, or too large a one. Lets the interpreter lock go meanwhile."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
    if matcher.is_error():
        raise refusal(matcher.get_error())
    return matcher


def refusal(why: str) -> RequestError:
    if why.startswith("NoExtension"):
        why = "there is no text that fits it"
    if why.startswith("oneOf"):
        why = "'oneOf' is not supported where its alternatives may overlap: use 'anyOf'"
    lines = [line.strip() for line in why.replace("<non-verbose/>", "").splitlines() if line.strip()]
    text = " ".join(lines)
    return RequestError(
        f"structured_outputs: cannot be compiled: {text[:500]}{'...' * (len(text) > 500)}", "structured_outputs"
    )


class Trials:
    """Processes in which grammars are tried, a few at once; started when first needed, and anew when one ends."""

    def __init__(self, table: TokenTable):
        self._tokens = pickle.dumps((table.tokens, table.special_token_ids, table.eos_token_id))
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        for _ in range(WORKERS):
            self._idle.put(_Worker(self._tokens))

    def run(self, grammar: str) -> None:
        """Raises RequestError for a grammar that is none, or costs too much."""
        worker = self._idle.get()
        try:
            error = worker.ask(grammar)
        finally:
            self._idle.put(worker)
        if error:
            raise refusal(error)

    def close(self) -> None:
        for _ in range(WORKERS):
            self._idle.get().stop()


class _Worker:
    def __init__(self, tokens: bytes):
        self._tokens = tokens
        self._process: subprocess.Popen[bytes] | None = None
        self._end: weakref.finalize[[subprocess.Popen[bytes]], _Worker] | None = None

    def ask(self, grammar: str) -> str:
        """What is wrong with the grammar; "" for nothing."""
        try:
            process = self._started()
        except (OSError, EOFError) as error:
            self.stop()
            raise RequestError(
                f"structured_outputs: the process that tries grammars does not start ({error}); try again",
                "structured_outputs",
            ) from error
        assert process.stdin is not None
        assert process.stdout is not None
        clock = threading.Timer(WALL_SECONDS, process.kill)
        clock.start()
        try:
            _send(process.stdin, grammar)
            answer: str = pickle.load(process.stdout)
        except (OSError, EOFError, pickle.UnpicklingError):  # it overflowed its stack, or was out of memory
            self.stop()
            return "it is nested too deeply or too large; simplify it"
        except BaseException:  # Ctrl-C: the answer would be taken for that to the next grammar
            self.stop()
            raise
        finally:
            clock.cancel()
        if answer == _TOO_LONG:
            self.stop()
        return answer

    def stop(self) -> None:
        self._process = None
        if self._end is not None:
            self._end()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        self._process = process = subprocess.Popen(
            [sys.executable, "-m", "jaxllm.constraints.trial"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # Rust tells there of its stack
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._end = weakref.finalize(self, _end, process)  # at the interpreter's exit, too
        assert process.stdin is not None
        process.stdin.write(self._tokens)
        process.stdin.flush()
        return process


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):  # what it never read
            if pipe is not None:
                pipe.close()


_TOO_LONG = f"it takes longer than {CPU_SECONDS:g} s; simplify it"


def _send(pipe: IO[bytes], message: Any) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the engine
    _bound_cores()
    tokenizer = TokenTable(*pickle.load(sys.stdin.buffer)).build()
    _bound_memory()
    threading.stack_size(STACK)
    while True:
        try:
            grammar = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        error: list[str] = []
        trial = threading.Thread(target=_try, args=(tokenizer, grammar, error), daemon=True)
        spent, before = 0.0, time.process_time()
        trial.start()
        while trial.is_alive():
            trial.join(LOOK)
            now = time.process_time()
            spent += min(now - before, 10 * LOOK)  # clocks run on where a machine stands still
            before = now
            if spent > CPU_SECONDS:
                _send(sys.stdout.buffer, _TOO_LONG)
                os._exit(1)
        _send(sys.stdout.buffer, error[0])


def _try(tokenizer: LLTokenizer, grammar: str, error: list[str]) -> None:
    try:
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=LIMITS)
        if not matcher.is_error():
            matcher.compute_bitmask()
        found = matcher.get_error()
        del matcher  # here, where the stack is small, too
    except BaseException as failure:  # a panic is none of Exception's
        found = str(failure) or type(failure).__name__
    error.append(found)


def _bound_memory() -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm") as statm:
            size = int(statm.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))


def _bound_cores() -> None:
    """No core files of a process that is here to fail."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    _main()
