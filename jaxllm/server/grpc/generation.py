"""One request's way from the engine's deltas to the chunks of its call."""

import time
from collections.abc import Callable

import grpc

from jaxllm.core import Delta, FinishReason, Logprobs, Request
from jaxllm.server.grpc import calls, conversions
from jaxllm.server.grpc.calls import Call
from jaxllm.server.grpc.conversions import CallError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.outcome import Outcome
from jaxllm.server.text import AnswerReader, TextStream, Tokenizer
from jaxllm.server.text.reading import Parsed

MakeReader = Callable[[], AnswerReader]


class Sample:
    """One sequence of a request.

    Attributes:
        call: where its chunks go.
        text, reader: what makes text of its tokens, and parts of a chat's text; None where nobody wants that.
        begun, ended: its first chunk is made, and its last.
        mean_logprob: of its tokens, where they are scored.
        num_reasoning: how many of its tokens are reasoning, as far as that is told from the text.
    """

    def __init__(
        self, index: int, request: Request, tokenizer: Tokenizer | None, call: Call, reader: AnswerReader | None
    ):
        self.index = index
        self.call = call
        self.reader = reader
        self.text = None
        if tokenizer and request.params.detokenize:
            self.text = TextStream(tokenizer, request.params, reader.special_tokens if reader else frozenset())
        self.begun = False
        self.ended = False
        self.num_reasoning = 0
        self._sum, self._count = 0.0, 0

    def read(self, delta: Delta) -> tuple[list[Parsed], str | None]:
        """What a delta adds to the text, and the stop string that ends it there."""
        if self.text is None:
            return [], None
        token_ids, ended = delta.token_ids, delta.finish is not None
        if self.reader is None:
            text, stop = self.text.feed(token_ids, ended, delta.stop_token)
            return [Parsed(text)], stop
        pieces = [token_ids]
        if self.reader.may_reason and len(token_ids) > 1:  # one by one, to know where the reasoning ends
            pieces = [token_ids[i : i + 1] for i in range(len(token_ids))]
        parts, stop = [], None
        for i, piece in enumerate(pieces, 1):
            last = i == len(pieces)
            known, reasoned = self.text.num_tokens, self.reader.reasons
            text, stop = self.text.feed(piece, ended and last, delta.stop_token if last else None)
            parts.append(self.reader.feed(text, stop is not None or (ended and last)))
            if reasoned or self.reader.reasons:
                self.num_reasoning += self.text.num_tokens - known
            if stop is not None:
                break
        return parts, stop

    @property
    def mean_logprob(self) -> float:
        return self._sum / max(1, self._count)

    def score(self, logprobs: Logprobs, count: int) -> None:
        """Count the first tokens of a delta."""
        self._sum += float(logprobs.token[:count].sum())
        self._count += count


class Generation:
    """One request of a call: takes the engine's deltas, adds text and all the rest to the call's chunks.

    Attributes:
        request_id: the client's name for it.
        engine_id: the engine's, never used twice: a client may use its own anew as soon as it sees the end, and
            the engine ends what a stop string ended a moment later.
        submitted: the engine has been given it.
        ended: its last chunk is made, or nobody wants it any more.
        outcome: how it went so far.
    """

    def __init__(self, request_id: str, engine_id: str, call: Call, num_samples: int):
        """num_samples: as many of them are answered with."""
        self.request_id = request_id
        self.outcome = Outcome(request_id, arrival=time.monotonic())
        self.engine_id = engine_id
        self.call = call
        self.submitted = False
        self.ended = False
        self._num_samples = num_samples

    def prepare(
        self,
        request: Request,
        tokenizer: Tokenizer | None,
        call_deadline: bool,
        make_reader: MakeReader | None = None,
        echo: str = "",
    ) -> None:
        """Without a tokenizer it yields token ids alone. call_deadline: the deadline is the call's own and ends it.

        make_reader: makes what tells a chat's answer into its parts. echo: what each sample's text begins with.
        """
        params = request.params
        self.outcome.params = params
        self._prompt = request.prompt
        self._scored = params.logprobs is not None
        self._tokenizer = tokenizer
        self._call_deadline = call_deadline
        self._echo = echo
        self._prompt_logprobs = 1  # the position of the next: the first prompt token has none
        # Of samples to choose from nothing is told before all have ended.
        self._choosing = params.num_samples > params.n and not params.use_beam_search
        count = params.num_samples if self._choosing else params.n
        self._samples = [
            Sample(
                index,
                request,
                tokenizer,
                Call() if self._choosing else self.call,
                make_reader() if make_reader else None,
            )
            for index in range(count)
        ]

    def take(self, delta: Delta, alive: bool) -> bool:
        """Add what is new; sets `ended` with the last delta, or before it where stop strings end the request.

        alive: whether the engine is; an error means something else when it is not. Returns whether a stop string has
        ended the delta's sample, of which the engine does not know.
        """
        if delta.finish is FinishReason.ERROR:
            code = grpc.StatusCode.INTERNAL if alive else grpc.StatusCode.UNAVAILABLE
            self.fail(CallError(code, delta.error or "the engine failed"))
            return False
        if delta.finish is FinishReason.DEADLINE and self._call_deadline:
            self.fail(CallError(grpc.StatusCode.DEADLINE_EXCEEDED, "the call's deadline passed"))
            return False
        if delta.prompt_logprobs is not None:
            self._add_prompt_logprobs(delta.prompt_logprobs)
        sample = self._samples[delta.index]
        if sample.ended:
            return False
        token_ids, num_output = delta.token_ids, delta.num_output
        known = sample.text.num_tokens if sample.text else 0
        parts, stop = sample.read(delta)
        if sample.text is not None:
            num_output = sample.text.num_tokens
            token_ids = token_ids[: num_output - known]  # none behind a stop string
        weight = len(token_ids)
        if delta.logprobs is not None:
            sample.score(delta.logprobs, len(token_ids))
            weight *= 2 + delta.logprobs.top.shape[1]
        chunk = self._chunk(sample, weight)
        for part in parts:
            conversions.write_parsed(chunk, part)
        chunk.token_ids.extend(token_ids)
        if self._scored and delta.logprobs is not None:
            conversions.write_logprobs(chunk.logprobs, token_ids, delta.logprobs, self._tokenizer)
        counts = chunk.counts
        counts.prompt, counts.completion, counts.cached = delta.num_prompt, num_output, delta.num_cached
        counts.reasoning = sample.num_reasoning
        if stop is not None:
            chunk.finish.reason = pb.FINISH_REASON_STOP
            chunk.finish.stop_string = stop
        elif delta.finish is not None:
            chunk.finish.reason = conversions.FINISH_REASONS[delta.finish]
            if delta.stop_token is not None:
                chunk.finish.stop_token_id = delta.stop_token
        else:
            return False
        conversions.write_timings(chunk.timings, delta, time.monotonic())
        sample.ended = True
        self.outcome.add(delta, num_output, "stop" if stop is not None else str(delta.finish))
        if all(sample.ended for sample in self._samples):
            self.ended = True
            if self._choosing:
                self._choose()
        return delta.finish is None

    def fail(self, error: CallError) -> None:
        self.call.fail(self.request_id, error)
        self.outcome.error = f"{error.code.name}, {error.message}"
        self.ended = True

    def abort(self) -> None:
        """End it before the engine has been given it."""
        for index in range(self._num_samples):
            self.call.chunk(self.request_id, 0, index).finish.reason = pb.FINISH_REASON_ABORT
        self.ended = True

    def _choose(self) -> None:
        """Answer with the likeliest samples, the best first."""
        best = sorted(self._samples, key=lambda sample: sample.mean_logprob, reverse=True)
        for index, sample in enumerate(best[: self._num_samples]):
            chunks = sample.call.take_now()
            for chunk in chunks:
                chunk.index = index
            self.call.put(chunks)

    def _chunk(self, sample: Sample, weight: int) -> pb.GenerateChunk:
        chunk = sample.call.chunk(self.request_id, weight, sample.index)
        if not sample.begun:
            chunk.prompt_token_ids.extend(self._prompt)
            chunk.text = self._echo
            sample.begun = True
        return chunk

    def _add_prompt_logprobs(self, logprobs: Logprobs) -> None:
        """Cut to the size of chunks: a prompt's log probabilities can be many megabytes."""
        positions, top = logprobs.top.shape
        if self._echo and self._prompt_logprobs == 1:
            entry = conversions.first_of_prompt(self._prompt[0], self._tokenizer)
            self.call.chunk(self.request_id, 1).prompt_logprobs.append(entry)
        size = max(1, calls.CHUNK_WEIGHT // (1 + top))
        for start in range(0, positions, size):
            piece = conversions.part(logprobs, start, start + size)
            token_ids = self._prompt[self._prompt_logprobs :][: len(piece.token)]
            weight = len(token_ids) * (1 + top)
            if self._choosing:  # the first sample may not be chosen
                chunk = self.call.chunk(self.request_id, weight)
            else:
                chunk = self._chunk(self._samples[0], weight)
            conversions.write_logprobs(chunk.prompt_logprobs, token_ids, piece, self._tokenizer)
            self._prompt_logprobs += len(token_ids)
