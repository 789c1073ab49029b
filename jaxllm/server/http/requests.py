"""What clients may ask, validated, and its translation into the engine's GenerateRequest.

Every field is used, or refused when it is not neutral (`Unsupported`), or listed as ignored on purpose (`Ignored`);
anything else is an error that names the field and the nearest known one. Values are judged by the same
`SamplingParams` the offline API has, so that both say the same about a bad one. Unset sampling fields stay unset on
the wire: the engine then takes the checkpoint's generation defaults.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, PlainValidator, ValidationInfo, model_validator

from jaxllm.core import SamplingParams
from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.errors import named_by
from jaxllm.server.http.forms import (
    MAX_UINT32,
    Body,
    Ignored,
    ReturnTimings,
    Strict,
    Unsupported,
    check_priority,
    check_token_ids,
)
from jaxllm.server.http.structured import ResponseFormat, Structured
from jaxllm.structured_outputs import StructuredOutputs

MAX_COPIED_BYTES = 32 << 20
"""Of sampling parameters, of which each prompt of a request takes a copy."""
SAMPLING_FIELDS = tuple(field.name for field in dataclasses.fields(SamplingParams))

_EARLY_STOPPING = {
    False: pb.EARLY_STOPPING_UNSPECIFIED,
    True: pb.EARLY_STOPPING_ALWAYS,
    "never": pb.EARLY_STOPPING_NEVER,
}
_WRITERS: dict[str, Callable[[Any], Any]] = {
    "early_stopping": _EARLY_STOPPING.__getitem__,
    "logit_bias": dict,  # its keys are numbers there
    "bad_words_ids": lambda words: [pb.TokenIds(ids=word) for word in words],
    "allowed_token_ids": lambda tokens: pb.TokenIds(ids=tokens),
    "thinking_token_ids": lambda tokens: pb.TokenIds(ids=tokens),
    "logits_processors": lambda named: {name: json.dumps(value) for name, value in named.items()},
    "structured_outputs": lambda form: pb.StructuredOutputs(
        **{name: value for name, value in dataclasses.asdict(form).items() if value is not None}
    ),
}
"""How the parameters that are no plain numbers, strings or truths are written to the wire."""


def _on_the_wire(given: Mapping[str, Any]) -> pb.Sampling:
    """Raises ValueError for a number that its field cannot hold, and for half a character."""
    return pb.Sampling(**{name: _WRITERS.get(name, lambda value: value)(value) for name, value in given.items()})


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """RequestErrors for what the wire cannot say of a field."""
    try:
        yield
    except UnicodeEncodeError:
        raise RequestError(f"{field}: holds half of a surrogate pair: no text has that", field) from None
    except ValueError as error:
        raise RequestError(f"{field}: {str(error)[0].lower()}{str(error)[1:]}", field) from None


def _prompts(value: Any, info: ValidationInfo) -> list[str] | list[list[int]]:
    """The four forms of OpenAI's `prompt` and `input`, as the two that hold several."""
    name = str(info.field_name)
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) for item in value):
            return [check_token_ids(item, name) for item in value]
        if not any(isinstance(item, (str, list)) for item in value):
            return [check_token_ids(value, name)]
    raise RequestError(
        f"{name}: must be a string, a list of strings, a list of token ids or a list of lists of token ids, not empty",
        name,
    )


Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Stop = Annotated[
    list[str] | None,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]),
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage so far in every event
    include_obfuscation: Ignored = None  # pads events against eavesdropping on their sizes; we have no such pads


class SamplingFields(Body):
    """What every dialect takes under the same name, which is OpenAI's or vLLM's."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Stop = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = Field(None, description="lower runs earlier; only with `--scheduling-policy priority`.")
    cache_salt: str | None = Field(None, description="cached prefixes are shared only among requests of the same salt.")
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    bad_words_ids: list[list[int]] | None = None
    allowed_token_ids: list[int] | None = None
    thinking_token_budget: int | None = None
    thinking_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    logits_processors: dict[str, Any] | None = None
    structured_outputs: Structured | None = None
    stream: bool | None = Field(None, description="answer by server-sent events, as tokens come.")
    return_timings: ReturnTimings = None


class GenerationRequest(SamplingFields):
    """The fields that completions and chats share beside those."""

    max_tokens: int | None = None
    prompt_logprobs: int | None = None
    return_token_ids: bool | None = Field(None, description="answer with the token ids of prompt and output, too.")
    stream_options: StreamOptions | None = Field(
        None,
        description="`include_usage`: a last event with the token counts; `continuous_usage_stats`: in each event.",
    )
    n: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None

    response_format: ResponseFormat | None = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stream_options and not self.stream:
            raise RequestError("stream_options: only with stream=true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs: not with stream=true; ask without streaming", "prompt_logprobs")
        check_priority(self.priority)
        self.sampling()
        return self

    @property
    def names(self) -> Mapping[str, str]:
        return {**super().names, **({} if self.structured_outputs else {"structured_outputs": "response_format"})}

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most likely tokens to report; None reports no log probabilities."""
        raise NotImplementedError

    @property
    def token_limit(self) -> int | None:
        """New tokens at most; None is as many as the context holds."""
        raise NotImplementedError

    def prompts(self) -> list[pb.GenerateRequest]:
        """One message per choice, holding its prompt alone."""
        raise NotImplementedError

    def sampling(self) -> pb.Sampling:
        """Raises RequestError."""
        with named_by(self):
            return self._sampling()

    def _sampling(self) -> pb.Sampling:
        fields = {name: getattr(self, name, None) for name in SAMPLING_FIELDS}
        fields |= {"logprobs": self.num_logprobs, "max_tokens": self.token_limit, "structured_outputs": self._form()}
        if fields["echo"] and fields["prompt_logprobs"] is None:  # OpenAI's logprobs then cover the prompt, too
            fields["prompt_logprobs"] = fields["logprobs"]
        given = {name: value for name, value in fields.items() if value is not None}
        if self.seed is not None and self.seed < 0:
            given["seed"] = self.seed % 2**63  # OpenAI's seeds are signed
        params = SamplingParams(**{"max_tokens": None} | given)
        if "max_tokens" in given:
            given["max_tokens"] = min(given["max_tokens"], MAX_UINT32)
        for name in _WRITERS.keys() & given.keys():
            given[name] = getattr(params, name)
        try:
            return _on_the_wire(given)
        except ValueError:
            for name, value in given.items():
                with _naming(name):
                    _on_the_wire({name: value})
            raise

    def _form(self) -> StructuredOutputs | None:
        form = self.response_format.structured_outputs() if self.response_format else None
        if self.structured_outputs is None:
            return form
        if form is not None:
            raise RequestError("response_format and structured_outputs are both set: send one", "structured_outputs")
        return self.structured_outputs.structured_outputs()

    def generate_requests(self, request_id: str) -> list[pb.GenerateRequest]:
        """One request per choice, with ids made from `request_id`."""
        requests = self.prompts()
        sampling = self.sampling()
        if len(requests) > 1 and len(requests) * sampling.ByteSize() > MAX_COPIED_BYTES:
            raise RequestError(
                f"prompt has {len(requests)} entries, each of which takes a copy of sampling parameters of "
                f"{sampling.ByteSize()} bytes: send several requests",
                "prompt",
            )
        for index, request in enumerate(requests):
            request.request_id = f"{request_id}-{index}"
            request.model = self.model or ""
            request.sampling.CopyFrom(sampling)
            request.priority = self.priority or 0
            request.cache_salt = self.cache_salt or ""
        return requests


class CompletionRequest(GenerationRequest):
    """POST /v1/completions."""

    prompt: Prompts
    logprobs: int | None = None
    add_special_tokens: bool | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: Unsupported = None

    def with_default(self, max_tokens: int) -> Self:
        """The same with the operator's max_tokens, 0 for none, where the client says nothing of it."""
        return self.model_copy(update={"max_tokens": max_tokens}) if self.max_tokens is None and max_tokens else self

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def only_scores(self) -> bool:
        """The answer is the prompt, with its log probabilities where they are asked for."""
        return bool(self.echo) and self.max_tokens == 0

    @property
    def token_limit(self) -> int | None:
        if self.only_scores:
            return 1  # the engine draws one at least; the answer leaves it out
        return 16 if self.max_tokens is None else self.max_tokens

    def sampling(self) -> pb.Sampling:
        if self.max_tokens == 0 and not self.echo:
            raise RequestError(
                "max_tokens=0: must be at least 1; for the prompt and its log probabilities alone send echo=true, too",
                "max_tokens",
            )
        sampling = super().sampling()
        if self.only_scores:  # so that the token has neither text nor log probability, and ends nothing by its text
            sampling.detokenize = False
            sampling.ClearField("stop")
            sampling.ClearField("logprobs")
        return sampling

    def prompts(self) -> list[pb.GenerateRequest]:
        return [
            pb.GenerateRequest(text=prompt, add_special_tokens=self.add_special_tokens)
            if isinstance(prompt, str)
            else pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt))
            for prompt in self.prompt
        ]
