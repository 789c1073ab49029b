"""What clients may ask, validated, and its translation into the engine's GenerateRequest.

Every field is used, or refused when it is not neutral (`Unsupported`), or listed as ignored on purpose (`Ignored`);
anything else is an error that names the field and the nearest known one. Values are judged by the same
`SamplingParams` the offline API has, so that both say the same about a bad one. Unset sampling fields stay unset on
the wire: the engine then takes the checkpoint's generation defaults.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from google.protobuf import json_format
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    model_validator,
)

from jaxllm.core import SamplingParams
from jaxllm.errors import RequestError
from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.tool_choice import check_tools

MAX_UINT32 = 2**32 - 1
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
}
"""How the parameters that are no plain numbers, strings or truths are written to the wire."""


class Strict(BaseModel):
    """No coercion ("1" is not 1), and no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _reject_unknown(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name in data:
                if name not in cls.model_fields:
                    near = difflib.get_close_matches(name, cls.model_fields, 1)
                    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(cls.model_fields)}"
                    raise RequestError(f"unknown field {name!r}; {hint}", name)
        return data


def _refuse(value: Any, info: ValidationInfo) -> Any:
    neutral = value is None or value is False or value in ("", [], {}, "none")
    if not neutral:
        raise RequestError(f"{info.field_name} is not supported by this server; leave it out", info.field_name)
    return value


def _token_ids(ids: list[Any], where: str) -> list[int]:
    if not all(type(token) is int and 0 <= token <= MAX_UINT32 for token in ids):
        bad = next(token for token in ids if not (type(token) is int and 0 <= token <= MAX_UINT32))
        raise RequestError(f"{where}: {bad!r} is not a token id", where)
    return ids


def _prompts(value: Any) -> list[str] | list[list[int]]:
    """The four forms of OpenAI's `prompt`, as the two that hold several prompts."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if all(isinstance(item, list) for item in value):
            return [_token_ids(item, "prompt") for item in value]
        if not any(isinstance(item, (str, list)) for item in value):
            return [_token_ids(value, "prompt")]
    raise RequestError(
        "prompt: must be a string, a list of strings, a list of token ids or a list of lists of token ids, not empty",
        "prompt",
    )


def _content(value: Any) -> str | list[str]:
    """A message's text, or that of each of its parts."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise RequestError("content: must be a string or a list of text parts", "messages")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            raise RequestError(f"content part of type {kind!r} is not supported; this model reads text", "messages")
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise RequestError("content part: must be {'type': 'text', 'text': a string}", "messages")
        texts.append(part["text"])
    return texts


def _role(value: Any) -> str:
    if value == "function":
        raise RequestError(
            "role 'function' is of an older kind of calls: send role 'tool', with tool_call_id", "messages"
        )
    roles = ("developer", "system", "user", "assistant", "tool")
    if value not in roles:
        raise RequestError(f"role {value!r}: must be one of {', '.join(roles)}", "messages")
    return "system" if value == "developer" else value  # OpenAI's newer name; chat templates know the older one


def _tools(value: Any) -> list[dict[str, Any]]:
    """As they were sent: templates write out every key, in its order."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise RequestError("tools: must be a list", "tools")
    check_tools(value)
    # `strict` asks the server for calls that fit the schema; the model is not told of it.
    return [
        {**tool, "function": {name: field for name, field in tool["function"].items() if name != "strict"}}
        for tool in value
    ]


def _documents(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(document, dict) for document in value):
        raise RequestError("documents: must be a list of objects, each with a text", "documents")
    return value


def _tool_choice(value: Any) -> pb.ToolChoice | None:
    match value:
        case None:
            return None
        case "auto":
            return pb.ToolChoice(mode=pb.ToolChoice.MODE_AUTO)
        case "none":
            return pb.ToolChoice(mode=pb.ToolChoice.MODE_NONE)
        case "required":
            return pb.ToolChoice(mode=pb.ToolChoice.MODE_REQUIRED)
        case {"type": "function", "function": {"name": str(name)}} if name:
            return pb.ToolChoice(function=name)
    raise RequestError(
        f"tool_choice={value!r}: must be 'auto', 'none', 'required' or "
        "{'type': 'function', 'function': {'name': ...}}",
        "tool_choice",
    )


Unsupported = Annotated[Any, AfterValidator(_refuse)]
"""Refused unless it says nothing (null, false, empty, "none"): ignoring it would answer another question."""
Ignored = Any
"""Ignored on purpose: labels for the provider's own records and routing, which change no answer."""
Prompts = Annotated[
    list[str] | list[list[int]],
    PlainValidator(_prompts, json_schema_input_type=str | list[str] | list[int] | list[list[int]]),
]
Stop = Annotated[
    list[str] | None,
    BeforeValidator(lambda value: [value] if isinstance(value, str) else value, json_schema_input_type=str | list[str]),
]
Content = Annotated[str | list[str], PlainValidator(_content, json_schema_input_type=str | list[dict[str, str]] | None)]
Role = Annotated[
    str, PlainValidator(_role, json_schema_input_type=Literal["developer", "system", "user", "assistant", "tool"])
]
Objects = list[dict[str, Any]]
Tools = Annotated[Objects, PlainValidator(_tools, json_schema_input_type=Objects | None)]
Documents = Annotated[Objects, PlainValidator(_documents, json_schema_input_type=Objects | None)]
ToolChoice = Annotated[
    pb.ToolChoice | None, PlainValidator(_tool_choice, json_schema_input_type=str | dict[str, Any] | None)
]


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None  # vLLM's: usage so far in every event
    include_obfuscation: Ignored = None  # pads events against eavesdropping on their sizes; we have no such pads


class ResponseFormat(Strict):
    type: str


class GenerationRequest(Strict):
    """The fields that both endpoints share, named as OpenAI and vLLM name them."""

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
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    prompt_logprobs: int | None = None
    priority: int | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | str | None = None
    logit_bias: dict[str, float] | None = None
    bad_words: list[str] | None = None
    bad_words_ids: list[list[int]] | None = None
    allowed_token_ids: list[int] | None = None
    thinking_token_budget: int | None = None
    thinking_token_ids: list[int] | None = None
    truncate_prompt_tokens: int | None = None
    logits_processors: dict[str, Any] | None = None

    response_format: ResponseFormat | None = None

    user: Ignored = None
    metadata: Ignored = None
    store: Ignored = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.response_format and self.response_format.type != "text":
            raise RequestError(
                f"response_format of type {self.response_format.type!r} is not supported by this server; leave it out",
                "response_format",
            )
        if self.stream_options and not self.stream:
            raise RequestError("stream_options: only with stream=true", "stream_options")
        if self.stream and self.prompt_logprobs is not None:
            raise RequestError("prompt_logprobs: not with stream=true; ask without streaming", "prompt_logprobs")
        if self.priority is not None and not -(2**31) <= self.priority < 2**31:
            raise RequestError(f"priority={self.priority}: must be a 32-bit integer", "priority")
        self.sampling()
        return self

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
        fields = {name: getattr(self, name, None) for name in SAMPLING_FIELDS}
        fields |= {"logprobs": self.num_logprobs, "max_tokens": self.token_limit}
        if fields["echo"] and fields["prompt_logprobs"] is None:  # OpenAI's logprobs then cover the prompt, too
            fields["prompt_logprobs"] = fields["logprobs"]
        given = {name: value for name, value in fields.items() if value is not None}
        if self.seed is not None and self.seed < 0:
            given["seed"] = self.seed % 2**63  # OpenAI's seeds are signed
        params = SamplingParams(**{"max_tokens": None} | given)
        if "max_tokens" in given:
            given["max_tokens"] = min(given["max_tokens"], MAX_UINT32)
        for name, write in _WRITERS.items():
            if name in given:
                given[name] = write(getattr(params, name))
        try:
            return pb.Sampling(**given)
        except ValueError as error:  # a number its field cannot hold
            raise RequestError(str(error)) from None

    def generate_requests(self, request_id: str) -> list[pb.GenerateRequest]:
        """One request per choice, with ids made from `request_id`."""
        requests = self.prompts()
        sampling = self.sampling()
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

    @property
    def num_logprobs(self) -> int | None:
        return self.logprobs

    @property
    def token_limit(self) -> int | None:
        return 16 if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[pb.GenerateRequest]:
        return [
            pb.GenerateRequest(text=prompt, add_special_tokens=self.add_special_tokens)
            if isinstance(prompt, str)
            else pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt))
            for prompt in self.prompt
        ]


class FunctionCall(Strict):
    name: str
    arguments: str


class MessageToolCall(Strict):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall
    index: Ignored = None  # of a stream's deltas, which some clients send back as they came


class Message(Strict):
    """What a client may send back of an answer (refusal, audio, ...) is accepted where it is empty."""

    role: Role
    content: Content = ""
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # vLLM's newer name of the same
    refusal: Unsupported = None
    annotations: Unsupported = None
    audio: Unsupported = None
    function_call: Unsupported = None

    def write(self, wire: pb.ChatMessage) -> None:
        wire.role = self.role
        wire.name = self.name or ""
        wire.reasoning = self.reasoning_content or self.reasoning or ""
        wire.tool_call_id = self.tool_call_id or ""
        if isinstance(self.content, str):
            wire.content = self.content
        else:
            wire.parts.extend(pb.ContentPart(text=text) for text in self.content)
        for call in self.tool_calls or ():
            wire.tool_calls.add(id=call.id, name=call.function.name, arguments=call.function.arguments)


class ChatFields(Strict):
    """A conversation and how its template is rendered."""

    messages: list[Message]
    tools: Tools = []
    documents: Documents = []
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_chat(self) -> Self:
        if self.messages == []:
            raise RequestError("messages: must hold at least one message", "messages")
        return self

    def chat(self) -> pb.Chat:
        chat = pb.Chat(continue_final_message=bool(self.continue_final_message))
        for message in self.messages:
            message.write(chat.messages.add())
        chat.tools.extend(json.dumps(tool, ensure_ascii=False) for tool in self.tools)
        chat.documents.extend(json.dumps(document, ensure_ascii=False) for document in self.documents)
        variables = dict(self.chat_template_kwargs or {})
        if self.add_generation_prompt is not None:
            variables["add_generation_prompt"] = self.add_generation_prompt
        json_format.ParseDict(variables, chat.template_kwargs)
        return chat


class ChatRequest(GenerationRequest, ChatFields):
    """POST /v1/chat/completions."""

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    tool_choice: ToolChoice = None
    parallel_tool_calls: bool | None = None
    include_reasoning: bool = True  # vLLM's: false leaves the reasoning out of the answer
    reasoning_effort: str | None = None
    functions: Unsupported = None
    function_call: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    verbosity: Unsupported = None
    web_search_options: Unsupported = None
    moderation: Unsupported = None
    modalities: list[Literal["text"]] | None = None

    service_tier: Ignored = None
    safety_identifier: Ignored = None
    prompt_cache_key: Ignored = None
    prompt_cache_retention: Ignored = None
    prompt_cache_options: Ignored = None

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs: only with logprobs=true", "top_logprobs")
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError("max_tokens and max_completion_tokens differ: send one of them", "max_completion_tokens")
        return self

    @property
    def num_logprobs(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_tokens is None else self.max_tokens

    def prompts(self) -> list[pb.GenerateRequest]:
        chat = self.chat()
        if self.tool_choice is not None:
            chat.tool_choice.CopyFrom(self.tool_choice)
        if self.parallel_tool_calls is not None:
            chat.parallel_tool_calls = self.parallel_tool_calls
        if self.reasoning_effort is not None:
            chat.template_kwargs["reasoning_effort"] = self.reasoning_effort
        return [pb.GenerateRequest(chat=chat)]


class TokenizeRequest(ChatFields):
    """POST /tokenize, with a prompt or with messages."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = None  # type: ignore[assignment]  # optional here alone
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None

    @model_validator(mode="after")
    def _check_prompt(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise RequestError("send either prompt or messages", "prompt")
        return self

    def to_proto(self) -> pb.TokenizeRequest:
        if self.prompt is None:
            return pb.TokenizeRequest(model=self.model or "", chat=self.chat())
        return pb.TokenizeRequest(model=self.model or "", text=self.prompt, add_special_tokens=self.add_special_tokens)


class DetokenizeRequest(Strict):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]

    def to_proto(self) -> pb.DetokenizeRequest:
        return pb.DetokenizeRequest(model=self.model or "", token_ids=_token_ids(self.tokens, "tokens"))
