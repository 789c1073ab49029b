"""LLM: the offline API. Prompts in, answers out, in the caller's own thread."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np

from jaxllm.config import OFFLINE_INTERVAL_MS, EngineConfig
from jaxllm.core import Delta, FinishReason, Logprobs, Request, SamplingParams
from jaxllm.engine import Engine
from jaxllm.errors import ConfigError, RequestError
from jaxllm.interrupts import interrupts_held
from jaxllm.pooling import PoolingMethods
from jaxllm.progress import Report, reporting
from jaxllm.prompts import Prompt, as_list, content_of, pair_of
from jaxllm.server.text import TextStream, Tokenizer


@dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log probability at one position. rank 1 is the most likely token."""

    logprob: float
    rank: int
    decoded_token: str | None


@dataclass(slots=True)
class CompletionOutput:
    """What a prompt was continued with.

    Attributes:
        token_ids: the drawn tokens, the one that ended the request included.
        logprobs: per drawn token, {token id: Logprob} of it and of the most likely ones; None if not asked for.
        cumulative_logprob: the sum over the drawn tokens; None if neither logprobs nor a ranking were asked for.
        finish_reason: None while it goes on, then stop, length, abort or error.
        stop_reason: the stop string or the token id that ended it, if one did.
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Seconds of time.monotonic()."""

    arrival_time: float
    first_scheduled_time: float | None = None
    first_token_time: float | None = None
    finished_time: float | None = None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answer, whole or so far.

    Attributes:
        prompt: its text; None if it was given as token ids. Of an encoder-decoder, what the decoder went on from, None
            if it was given nothing.
        prompt_token_ids: of an encoder-decoder, what the decoder went on from.
        encoder_prompt, encoder_prompt_token_ids: what an encoder-decoder's encoder read.
        prompt_logprobs: per prompt token, {token id: Logprob}; None for the first, which nothing precedes.
        outputs: one for each sample.
        num_cached_tokens: prompt tokens whose keys and values came from the prefix cache.
        error: why the request failed, if it did.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    metrics: RequestMetrics
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    encoder_prompt: str | None = None
    encoder_prompt_token_ids: list[int] | None = None


class LLM(PoolingMethods):
    """A model, loaded and ready. Use it as a context manager, or call close, to give the memory back.

        llm = LLM("path/to/checkpoint", max_model_len=4096)
        for output in llm.generate(["Once upon", "Hello"], SamplingParams(max_tokens=32)):
            print(output.prompt, output.outputs[0].text)

    model: a Hugging Face checkpoint directory, one written by `jaxllm convert`, or "demo".
    model_class: a module class to use in place of the architecture's own: a model changed in one file.
    chat_template: a Jinja file to use instead of the checkpoint's template.
    progress: told of loading and compiling; bars on a terminal by default.
    config: the fields of EngineConfig; an unknown one is an error.

    One thread at a time may use it; EngineClient is for many. Raises ConfigError, CheckpointError,
    UnknownModelError.
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        model_class: type | None = None,
        chat_template: str | None = None,
        progress: Report | None = None,
        **config: Any,
    ):
        config.setdefault("stream_interval_ms", OFFLINE_INTERVAL_MS)
        engine_config = EngineConfig.from_kwargs(model=str(model), **config)
        with reporting(progress) as report:
            self._engine: Engine | None = Engine.start(engine_config, model_class=model_class, progress=report)
        self._engine.keep()
        self._engine.use_vocabulary(lambda: self.tokenizer)
        self._chat_template = chat_template
        self._ids = itertools.count()
        self._answers: dict[str, _Answer] = {}
        self._driving = False  # the engine, which must not be called from within
        self._unwanted: deque[tuple[str, FinishReason]] = deque()  # to be aborted when it is not

    @property
    def engine(self) -> Engine:
        if self._engine is None:
            raise RuntimeError("this LLM is closed: make a new one")
        return self._engine

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """Loaded when it is first needed. Raises ConfigError if there is none."""
        return Tokenizer.load(self.engine.config.tokenizer or self.engine.info.path, self._chat_template)

    def default_sampling_params(self) -> SamplingParams:
        """What the checkpoint's generation_config.json recommends; used where generate is given none."""
        defaults: dict[str, Any] = dict(self.engine.info.generation_defaults)
        return SamplingParams(**defaults)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: int | Sequence[int] = 0,
        cache_salt: str = "",
    ) -> list[RequestOutput]:
        """Continue every prompt; the answers come in the order of the prompts.

        params: for all prompts, or one for each.
        use_tqdm: show how many are done, on a terminal.
        priority: for all prompts, or one for each; lower runs earlier; only with the priority policy.
        cache_salt: prefixes are shared only among requests of the same salt.

        Raises RequestError before anything runs if a prompt or its parameters are invalid, and EngineDeadError.
        A request that fails alone has finish_reason "error".
        """
        answers = self._make_answers(as_list(prompts), params, priority, cache_salt)
        waiting = deque(answers)
        running: set[str] = set()
        with reporting(None) if use_tqdm else nullcontext() as report, self._aborting(answers):
            while waiting or running:
                while waiting and self.engine.num_queued < self.engine.config.max_queued:
                    running.add(self._start(waiting.popleft()))
                ended = {answer.request.request_id for answer in self._advance() if answer.finished}
                running -= ended
                if ended and report is not None:
                    report(len(answers) - len(waiting) - len(running), len(answers), "generating")
        return [answer.output() for answer in answers]

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation (a list of {"role", "content"}) or several, as `generate` does.

        continue_final_message: go on with the last message instead of answering it.
        tools: what the template is to offer the model, as OpenAI has them; the text shows the calls it makes.
        documents: what the template is to lay before it, each with a title and a text.
        chat_template_kwargs: extra variables of the chat template.
        """
        variables = dict(chat_template_kwargs or {})
        if tools is not None:
            variables["tools"] = list(tools)
        if documents is not None:
            variables["documents"] = list(documents)
        many = bool(messages) and not isinstance(messages[0], Mapping)
        conversations: Any = messages if many else [messages]
        prompts = [
            self.tokenizer.render_chat(
                conversation,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **variables,
            )
            for conversation in conversations
        ]
        outputs = self.generate(
            [self.tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts], params, use_tqdm=use_tqdm
        )
        for output, prompt in zip(outputs, prompts, strict=True):
            output.prompt = prompt
        return outputs

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        beam_width: int = 4,
        *,
        max_tokens: int = 16,
        n: int | None = None,
        length_penalty: float = 1.0,
        early_stopping: bool | Literal["never"] = False,
        ignore_eos: bool = False,
        stop_token_ids: Sequence[int] = (),
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """The likeliest answers to every prompt that beams of beam_width find, the best first, as transformers does.

        n: how many of them; all by default. The others are those of SamplingParams. An output's cumulative_logprob,
        over its number of tokens to the power of length_penalty, is what it was ranked by.
        """
        params = SamplingParams(
            use_beam_search=True,
            best_of=beam_width,
            n=n or beam_width,
            max_tokens=max_tokens,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            ignore_eos=ignore_eos,
            stop_token_ids=tuple(stop_token_ids),
        )
        return self.generate(prompts, params, use_tqdm=use_tqdm)

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[RequestOutput]:
        """Continue one prompt, yielding the answer so far as it grows. Leaving the loop ends the request."""
        return self._stream(*self._make_answers([prompt], params))

    def encode_logits(self, prompt: Prompt) -> np.ndarray:
        """[T, V] float32: the model's logits behind each token of the prompt, an encoder-decoder's decoder prompt. For
        research."""
        read = self._read(prompt)
        return self.engine.prompt_logits(read.token_ids, read.source)

    def close(self) -> None:
        """Give the device's memory back. Requests of a stream that was not read to its end are dropped."""
        self._engine = None
        self._answers.clear()
        self._unwanted.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    # --- from prompts to requests ---

    def _make_answers(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: int | Sequence[int] = 0,
        cache_salt: str = "",
    ) -> list["_Answer"]:
        if params is None:
            params = self.default_sampling_params()
        each = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise RequestError(
                f"{len(each)} SamplingParams for {len(prompts)} prompts: give one, or one each", "params"
            )
        priorities = [priority] * len(prompts) if isinstance(priority, int) else list(priority)
        if len(priorities) != len(prompts):
            raise RequestError(
                f"{len(priorities)} priorities for {len(prompts)} prompts: give one, or one each", "priority"
            )
        return [
            self._make_answer(prompt, own, order, cache_salt)
            for prompt, own, order in zip(prompts, each, priorities, strict=True)
        ]

    def _make_answer(self, prompt: Prompt, params: SamplingParams, priority: int, cache_salt: str) -> "_Answer":
        if not isinstance(params, SamplingParams):
            raise RequestError(f"params={params!r}: must be SamplingParams", "params")
        read = self._read(prompt)
        if params.need_tokenizer:
            params = self.tokenizer.resolve(params)
        request = self.engine.make_request(
            read.token_ids,
            params,
            source=read.source,
            request_id=str(next(self._ids)),
            priority=priority,
            cache_salt=cache_salt,
        )
        return _Answer(request, read, self._detokenizer() if params.detokenize else None)

    def _detokenizer(self) -> Tokenizer:
        try:
            return self.tokenizer
        except ConfigError as error:
            raise ConfigError(f"{error}; or ask for token ids alone: SamplingParams(detokenize=False)") from error

    def _read(self, prompt: Prompt) -> "_Read":
        pair = pair_of(prompt)
        if self.engine.info.decoder_start is None and pair is None:
            return _Read(*self._read_prompt(prompt))
        encoder, decoder = pair or (prompt, None)
        source_text, source = self._read_prompt(encoder)
        text, token_ids = (None, []) if decoder is None else self._read_prompt(decoder, add_special_tokens=False)
        return _Read(text, token_ids, source_text, source)

    def _read_prompt(self, prompt: Prompt, *, add_special_tokens: bool = True) -> tuple[str | None, Sequence[int]]:
        """Its text, if it came as text, and its token ids."""
        content = content_of(prompt)
        if not isinstance(content, str):
            return None, content
        if not content:
            raise RequestError("prompt is empty: a text to go on from is needed", "prompt")
        return content, self.tokenizer.encode(content, add_special_tokens=add_special_tokens)

    # --- running ---

    @contextmanager
    def _drive(self) -> Iterator[Engine]:
        """The engine, with Ctrl-C held: it and the answers go on together. What is not wanted any more is aborted
        behind it: the garbage collector may end a stream left in the middle at any moment, also within a step."""
        with interrupts_held():
            self._driving = True
            try:
                yield self.engine
            finally:
                while self._unwanted:
                    self.engine.abort(*self._unwanted.popleft())
                self._driving = False

    def _start(self, answer: "_Answer") -> str:
        request_id = answer.request.request_id
        with self._drive() as engine:
            engine.add(answer.request)
            self._answers[request_id] = answer
        return request_id

    def _advance(self) -> list["_Answer"]:
        """One step of the engine; the answers that it advanced."""
        advanced = []
        with self._drive() as engine:  # also while answers take what the step brought: nothing brings it again
            for delta in engine.step():
                # What a stop string ended was forgotten then; its last delta says nothing new.
                if (answer := self._answers.get(delta.request_id)) is not None:
                    stopped = answer.take(delta)
                    advanced.append(answer)
                    if answer.finished:
                        self._forget(answer)
                    elif stopped:
                        engine.abort(delta.request_id, FinishReason.STOP, delta.index)
        return advanced

    def _forget(self, answer: "_Answer") -> None:
        del self._answers[answer.request.request_id]
        if answer.request.finish is None:  # of a request of several samples it stays None; such an abort does no harm
            reason = FinishReason.STOP if answer.finished else FinishReason.ABORT
            self._unwanted.append((answer.request.request_id, reason))

    def _stream(self, answer: "_Answer") -> Iterator[RequestOutput]:
        with self._aborting([answer]):
            self._start(answer)
            while answer.unread or not answer.finished:
                if answer.unread:
                    yield answer.output()
                else:
                    self._advance()

    @contextmanager
    def _aborting(self, answers: Iterable["_Answer"]) -> Iterator[None]:
        """Whatever of these still runs at the end is aborted."""
        try:
            yield
        finally:
            with interrupts_held():
                for answer in answers:
                    if self._answers.get(answer.request.request_id) is answer:
                        self._forget(answer)
                if self._unwanted and not self._driving:
                    with self._drive():
                        pass  # they are aborted behind it


@dataclass(frozen=True, slots=True)
class _Read:
    """A prompt's text, if it came as text, and its token ids; the same of what an encoder reads, if there is one."""

    text: str | None
    token_ids: Sequence[int]
    source_text: str | None = None
    source: Sequence[int] | None = None


class _Answer:
    """One request of an LLM and what has come of it.

    Attributes:
        finished: nothing more will come.
        unread: something came since `output` was called.
    """

    def __init__(self, request: Request, read: _Read, tokenizer: Tokenizer | None):
        """tokenizer: None where no text is wanted."""
        self.request = request
        self.finished = False
        self.unread = False
        self._read = read
        self._tokenizer = tokenizer
        params = request.params
        count = params.n if params.use_beam_search else params.num_samples
        echo = ""
        if params.echo and tokenizer is not None:
            cut = read.text is None or params.truncate_prompt_tokens is not None
            echo = tokenizer.decode(request.prompt, params.skip_special_tokens) if cut else read.text or ""
        self._samples = [_Sample(request, tokenizer, echo) for _ in range(count)]
        self._prompt_logprobs: list[dict[int, Logprob] | None] | None = None
        self._last: Delta | None = None
        self._error: str | None = None

    def take(self, delta: Delta) -> bool:
        """Add what a step brought; `finished` is set with the end, or where stop strings are met before it.

        True where a stop string has ended a sample that the engine goes on with.
        """
        sample = self._samples[delta.index]
        if sample.finish is None:
            sample.take(delta)
        if delta.prompt_logprobs is not None:
            top = self.request.params.prompt_logprobs or 0
            self._prompt_logprobs = [
                None, *_positions(self._tokenizer, delta.prompt_logprobs, self.request.prompt[1:], top)
            ]  # fmt: skip
        self.finished = all(sample.finish is not None for sample in self._samples)
        self.unread = True
        self._last = delta
        self._error = self._error or delta.error
        return sample.finish is not None and delta.finish is None

    def output(self) -> RequestOutput:
        """The answer so far."""
        self.unread = False
        last, params = self._last, self.request.params
        assert last is not None
        samples = self._samples
        if params.n < len(samples):  # best_of
            samples = sorted(samples, key=_Sample.mean_logprob, reverse=True)[: params.n]
        prompt_logprobs = self._prompt_logprobs
        if prompt_logprobs is None and params.prompt_logprobs is not None:
            prompt_logprobs = [None]  # a prompt of one token
        if self.finished and last.finished is None:
            last.finished = time.monotonic()  # a stop string ended it
        return RequestOutput(
            request_id=last.request_id,
            prompt=self._read.text,
            prompt_token_ids=self.request.prompt,
            outputs=[sample.output(index) for index, sample in enumerate(samples)],
            finished=self.finished,
            metrics=RequestMetrics(last.arrival, last.first_scheduled, last.first_token, last.finished),
            prompt_logprobs=prompt_logprobs,
            num_cached_tokens=last.num_cached,
            error=self._error,
            encoder_prompt=self._read.source_text,
            encoder_prompt_token_ids=self.request.source or None,
        )


class _Sample:
    """One sequence of an answer. finish: why it ended, or None."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None, text: str):
        """text: what its text begins with."""
        self.finish: FinishReason | None = None
        self._params = request.params
        self._tokenizer = tokenizer
        self._stream = TextStream(tokenizer, request.params) if tokenizer is not None else None
        self._text = text
        self._token_ids: list[int] = []
        self._logprobs: list[dict[int, Logprob]] = []
        self._cumulative_logprob: float | None = 0.0 if request.params.logprobs is not None else None
        self._stop: int | str | None = None

    def take(self, delta: Delta) -> None:
        token_ids = delta.token_ids
        self.finish, self._stop = delta.finish, delta.stop_token
        if self._stream is not None:
            text, stop = self._stream.feed(token_ids, delta.finish is not None, delta.stop_token)
            self._text += text
            if stop is not None:
                token_ids = token_ids[: self._stream.num_tokens - len(self._token_ids)]
                self.finish, self._stop = FinishReason.STOP, stop
        self._token_ids += token_ids
        if delta.logprobs is not None:
            own = delta.logprobs.token[: len(token_ids)].sum(dtype=np.float64)
            self._cumulative_logprob = (self._cumulative_logprob or 0.0) + float(own)
            if self._params.logprobs is not None:
                self._logprobs += _positions(self._tokenizer, delta.logprobs, token_ids, self._params.logprobs)

    def mean_logprob(self) -> float:
        return (self._cumulative_logprob or 0.0) / max(1, len(self._token_ids))

    def output(self, index: int) -> CompletionOutput:
        return CompletionOutput(
            index=index,
            text=self._text,
            token_ids=list(self._token_ids),
            cumulative_logprob=self._cumulative_logprob,
            logprobs=list(self._logprobs) if self._params.logprobs is not None else None,
            finish_reason=None if self.finish is None else str(self.finish),
            stop_reason=self._stop,
        )


def _positions(
    tokenizer: Tokenizer | None, logprobs: Logprobs, token_ids: Sequence[int], top: int
) -> list[dict[int, Logprob]]:
    """Per position the given token first, then the `top` most likely ones in order."""

    def entry(token: int, logprob: float, rank: int) -> Logprob:
        return Logprob(logprob, rank, tokenizer.token_text(token) if tokenizer is not None else None)

    tokens, ranks = logprobs.token.tolist(), logprobs.rank.tolist()
    top_ids, tops = logprobs.top_ids[:, :top].tolist(), logprobs.top[:, :top].tolist()
    positions = []
    for i, token in enumerate(token_ids):
        position = {token: entry(token, tokens[i], ranks[i])}
        for rank, (other, logprob) in enumerate(zip(top_ids[i], tops[i], strict=True), start=1):
            if other != token:
                position[other] = entry(other, logprob, rank)
        positions.append(position)
    return positions
