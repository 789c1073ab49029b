"""The client's thread: submit and abort from anywhere, one end for each request, even when the engine dies."""

import queue
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from echo_runner import VOCABULARY, answer, echo_engine

from jaxllm.core import Delta, FinishReason, Request, SamplingParams
from jaxllm.engine import EngineClient
from jaxllm.engine import client as client_module
from jaxllm.errors import EngineDeadError, QueueFullError, RequestError


class Inbox:
    """Collects the deltas of one request."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self._ended = threading.Event()

    def __call__(self, delta: Delta) -> None:
        assert threading.current_thread().name == "engine"
        self.deltas.append(delta)
        if delta.finish is not None:
            self._ended.set()

    def end(self) -> Delta:
        assert self._ended.wait(20), "the request never ended"
        assert [delta.finish is not None for delta in self.deltas].count(True) == 1
        return self.deltas[-1]

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.token_ids]


def submit(client: EngineClient, prompt: list[int], request_id: str | None = None, **params: object) -> Inbox:
    inbox = Inbox()
    client.submit(client.make_request(prompt, SamplingParams(**params), request_id=request_id), inbox)  # type: ignore[arg-type]
    return inbox


@pytest.fixture
def client() -> Iterator[EngineClient]:
    client = EngineClient(echo_engine(step_time=0.001))
    yield client
    client.stop()


def test_many_threads_submit_and_abort(client: EngineClient) -> None:
    answers: queue.Queue[tuple[list[int], int, Inbox, bool]] = queue.Queue()

    def work(seed: int) -> None:
        draw = random.Random(seed)
        for i in range(12):
            prompt, length = [draw.randrange(VOCABULARY - 1) for _ in range(draw.randint(1, 30))], draw.randint(1, 30)
            inbox = submit(client, prompt, request_id=f"{seed}-{i}", max_tokens=length)
            aborted = draw.random() < 0.3
            if aborted:
                time.sleep(draw.random() * 0.01)
                client.abort(f"{seed}-{i}")
            answers.put((prompt, length, inbox, aborted))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.qsize() == 48
    while not answers.empty():
        prompt, length, inbox, aborted = answers.get()
        finish = inbox.end().finish
        assert finish is FinishReason.LENGTH or (aborted and finish is FinishReason.ABORT)
        assert inbox.tokens == answer(prompt, length)[: len(inbox.tokens)]
        if finish is FinishReason.LENGTH:
            assert len(inbox.tokens) == length
    load = client.load()
    assert (load.running, load.waiting, load.pages_free) == (0, 0, load.pages_total)


def test_a_start_is_kept_while_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "IDLE_SECONDS", 0.2)
    engine = echo_engine(step_time=0.02)
    engine.runner.unkept = 3
    client = EngineClient(engine)
    inbox, unkept = Inbox(), set()

    def note(delta: Delta) -> None:
        unkept.add(engine.runner.unkept)
        inbox(delta)

    client.submit(client.make_request([1, 2], SamplingParams(max_tokens=100)), note)
    inbox.end()
    assert len(inbox.deltas) > 3
    assert len(unkept) == 1  # none while it ran, though that took longer than an idle moment
    until = time.monotonic() + 20
    while engine.runner.unkept and time.monotonic() < until:
        time.sleep(0.01)
    assert engine.runner.unkept == 0
    engine.runner.unkept = 2  # nobody asks again
    time.sleep(0.5)
    assert engine.runner.unkept == 2
    client.stop()
    assert engine.runner.unkept == 0  # and what is left is kept at the end


def test_the_idle_loop_sleeps(client: EngineClient) -> None:
    submit(client, [1], max_tokens=2).end()
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.1


def test_abort_bears_the_reason_it_is_given(client: EngineClient) -> None:
    inbox = submit(client, [1], request_id="r", max_tokens=120)
    assert client.abort("r", FinishReason.STOP)
    assert inbox.end().finish is FinishReason.STOP
    assert not client.abort("r")


@pytest.mark.parametrize("prompt", [[1] * 3, list(range(100))], ids=["decoding", "prefilling"])
def test_an_aborted_request_gives_its_pages_back_within_two_steps(prompt: list[int]) -> None:
    """Steps are let through one by one: the one under way when the abort comes, and at most one more."""
    engine = echo_engine(decode_steps=(1,))
    may_end, collect = threading.Semaphore(0), engine.runner.collect
    ended = threading.Semaphore(0)

    def gated(handle: object) -> object:
        assert may_end.acquire(timeout=20)
        output = collect(handle)
        ended.release()
        return output

    engine.runner.collect = gated  # type: ignore[method-assign]
    client = EngineClient(engine)

    def one_step() -> None:
        may_end.release()
        assert ended.acquire(timeout=20)

    inbox = submit(client, prompt, request_id="r", max_tokens=20)
    one_step()
    one_step()
    assert client.load().pages_free < client.load().pages_total
    assert client.abort("r")
    one_step()
    may_end.release()  # the second, if there is one
    assert inbox.end().finish is FinishReason.ABORT
    assert client.load().pages_free == client.load().pages_total
    client.stop()


def test_a_request_that_cannot_be_queued_fails_alone(client: EngineClient, caplog: pytest.LogCaptureFixture) -> None:
    odd = client.make_request([1], SamplingParams(max_tokens=5), cache_salt=None)  # type: ignore[arg-type]
    inbox = Inbox()
    with client._changed:  # so that all of it is carried out together
        client.submit(odd, inbox)
        others = [submit(client, [2], max_tokens=5), submit(client, [3], max_tokens=5)]
    assert inbox.end().finish is FinishReason.ERROR
    assert "'NoneType' object has no attribute 'encode'" in str(inbox.end().error)
    assert [other.end().finish for other in others] == [FinishReason.LENGTH] * 2
    assert client.alive
    assert "cannot be queued" in caplog.text


def test_an_id_in_use_is_refused(client: EngineClient) -> None:
    inbox = submit(client, [1], request_id="r", max_tokens=100)
    with pytest.raises(RequestError, match="a request of this id is running"):
        submit(client, [2], request_id="r")
    assert inbox.end().finish is FinishReason.LENGTH
    assert inbox.tokens == answer([1], 100)


def test_ids_that_look_like_those_of_samples_are_no_samples(client: EngineClient) -> None:
    alone = submit(client, [1], request_id="r#1", max_tokens=100)
    ends: list[Delta] = []
    request = client.make_request([2], SamplingParams(max_tokens=5, n=3), request_id="r")
    done = threading.Event()

    def note(delta: Delta) -> None:
        if delta.finish is not None:
            ends.append(delta)
            if not delta.more:
                done.set()

    client.submit(request, note)
    assert done.wait(20)
    assert sorted(delta.index for delta in ends) == [0, 1, 2]
    assert alone.end().finish is FinishReason.LENGTH
    assert alone.tokens == answer([1], 100)
    with pytest.raises(RequestError, match="which tells samples apart"):
        client.make_request([1], SamplingParams(), request_id="r\0001")


def test_samples_that_wait_for_a_place_refuse_nobody() -> None:
    client = EngineClient(echo_engine(step_time=0.01, max_num_seqs=2, max_queued=2))
    client.submit(client.make_request([1], SamplingParams(max_tokens=100, n=12)), lambda delta: None)
    while client.load().running < 2:
        time.sleep(0.005)
    assert client.load().waiting == 10
    inbox = submit(client, [2], max_tokens=1)
    client.stop()
    assert inbox.end().finish is FinishReason.ABORT


def test_a_full_queue_is_refused_at_once() -> None:
    client = EngineClient(echo_engine(step_time=0.01, max_num_seqs=1, max_queued=3, num_pages=33))
    inboxes = [submit(client, [1], max_tokens=100) for _ in range(3)]
    with pytest.raises(QueueFullError, match="--max-queued"):
        inboxes += [submit(client, [1], max_tokens=100) for _ in range(7)]  # one may run meanwhile
    client.stop()
    assert all(inbox.end().finish is FinishReason.ABORT for inbox in inboxes)


def test_a_dead_engine_tells_everyone_and_refuses() -> None:
    client = EngineClient(echo_engine(fail_at=5, decode_steps=(1,), step_time=0.001))
    inboxes = [submit(client, [i], max_tokens=60) for i in range(12)]
    for inbox in inboxes:
        end = inbox.end()
        assert end.finish is FinishReason.ERROR
        assert "fell off the bus" in str(end.error)
    client._thread.join(5)
    assert not client.alive
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        submit(client, [1])
    with pytest.raises(EngineDeadError, match="fell off the bus"):
        client.flush_prefix_cache()
    assert client.drain(1.0)
    client.stop()


def test_flush_answers_from_another_thread(client: EngineClient) -> None:
    submit(client, list(range(20)), max_tokens=1).end()
    assert client.flush_prefix_cache() > 0
    assert client.flush_prefix_cache() == 0


def test_drain_lets_requests_end_and_takes_no_more(client: EngineClient) -> None:
    inbox = submit(client, [3], max_tokens=100)
    assert client.drain(20)
    assert inbox.deltas[-1].finish is FinishReason.LENGTH
    with pytest.raises(EngineDeadError, match="takes no more requests"):
        submit(client, [3])


def test_drain_is_bounded_and_stop_aborts_the_rest() -> None:
    client = EngineClient(echo_engine(step_time=0.05, decode_steps=(1,)))
    inbox = submit(client, [3], max_tokens=120)
    started = time.monotonic()
    assert not client.drain(0.1)
    client.stop()
    assert time.monotonic() - started < 5
    assert inbox.end().finish is FinishReason.ABORT
    assert not client.alive
    with pytest.raises(EngineDeadError):
        submit(client, [3])


def test_a_failing_listener_harms_nobody_else(client: EngineClient, caplog: pytest.LogCaptureFixture) -> None:
    def broken(delta: Delta) -> None:
        raise ValueError("listener")

    client.submit(client.make_request([1], SamplingParams(max_tokens=50)), broken)
    inbox = submit(client, [2], max_tokens=50)
    assert inbox.end().finish is FinishReason.LENGTH
    assert client.drain(20)
    assert caplog.text.count("whoever listens to request") == 1  # it was aborted at once
    assert client.load().generation_tokens < 100


@pytest.mark.parametrize("method", ["observe_request", "observe_delta", "observe_step"])
def test_a_failing_observer_harms_nobody(method: str, client: EngineClient, caplog: pytest.LogCaptureFixture) -> None:
    class Observer:
        def __getattr__(self, name: str) -> Any:
            def observe(*_: Any) -> None:
                if name == method:
                    raise ValueError("observer")

            return observe

    client.add_observer(Observer())
    assert submit(client, [2], max_tokens=5).end().finish is FinishReason.LENGTH
    assert client.drain(20)
    assert client.alive
    assert "an observer failed on" in caplog.text


def test_observers_see_every_delta_and_every_step(client: EngineClient) -> None:
    class Observer:
        def __init__(self) -> None:
            self.gaps: list[float | None] = []
            self.tokens = 0
            self.ends = 0
            self.steps: dict[str, int] = {"extend": 0, "decode": 0}
            self.requests: list[int] = []

        def observe_request(self, request: Request) -> None:
            self.requests.append(len(request.prompt))

        def observe_delta(self, delta: Delta, previous_time: float | None) -> None:
            self.gaps.append(None if previous_time is None else time.monotonic() - previous_time)
            self.tokens += len(delta.token_ids)
            self.ends += delta.finish is not None

        def observe_step(self, kind: str, num_tokens: int, seconds: float) -> None:
            self.steps[kind] += num_tokens
            assert seconds > 0

    observer = Observer()
    client.add_observer(observer)
    inboxes = [submit(client, [5] * 10, max_tokens=20) for _ in range(3)]
    for inbox in inboxes:
        inbox.end()
    client.stop()
    assert observer.requests == [10, 10, 10]
    assert observer.tokens == 60
    assert observer.ends == 3
    assert observer.gaps.count(None) == 3
    assert all(gap is None or gap >= 0 for gap in observer.gaps)
    load = client.load()
    assert observer.steps["extend"] >= load.prompt_tokens - load.prefix_hits > 0
    assert observer.steps["decode"] <= 57
