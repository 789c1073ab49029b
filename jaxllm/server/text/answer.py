"""Answers to chats: which part is content, which is reasoning, and which calls tools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from jaxllm.errors import ConfigError
from jaxllm.server.text import reasoning, tools
from jaxllm.server.text.harmony import Harmony
from jaxllm.server.text.reading import Parsed, Reader

HARMONY_TOOLS, HARMONY_REASONING = "openai", "openai_gptoss"
"""vLLM's names for the two halves of gpt-oss's format, which one parser reads."""
TOOL_PARSERS = (*tools.PARSERS, HARMONY_TOOLS)
REASONING_PARSERS = (*reasoning.PARSERS, HARMONY_REASONING)


@dataclass(frozen=True)
class AnswerFormat:
    """How a model writes its answers. tools, reasoning: names of parsers; None reads no such thing."""

    tools: str | None = None
    reasoning: str | None = None

    @classmethod
    def choose(cls, template: str | None, tool_call_parser: str = "auto", reasoning_parser: str = "auto") -> Self:
        """The parsers named; "auto" is what the chat template tells of, "none" is none. Raises ConfigError."""
        template = template or ""
        harmony = "<|channel|>" in template and "<|message|>" in template
        return cls(
            _chosen(
                "tool_call_parser", tool_call_parser, TOOL_PARSERS, HARMONY_TOOLS if harmony else tools.detect(template)
            ),
            _chosen(
                "reasoning_parser", reasoning_parser, REASONING_PARSERS,
                HARMONY_REASONING if harmony else reasoning.detect(template),
            ),
        )  # fmt: skip


class AnswerReader:
    """Reads one answer as it comes.

    Attributes:
        special_tokens: special tokens that have to be in the text, whether or not others are left out.
    """

    def __init__(
        self,
        form: AnswerFormat,
        tools_offered: Sequence[Mapping[str, Any]] = (),
        *,
        parallel: bool = True,
        prompt: str = "",
        continued: str | None = None,
    ):
        """tools_offered: what may be called; nothing is a call without. parallel: more than one call at once.

        prompt: its text, whose end may begin the reasoning. continued: the beginning of the answer within it, if the
        model goes on with one.
        """
        self._parallel = parallel
        self._stages: list[Reader] = []
        harmony_calls = form.tools == HARMONY_TOOLS and bool(tools_offered)
        if harmony_calls or form.reasoning == HARMONY_REASONING:
            self._stages.append(
                Harmony(
                    tools_offered, reasoning=form.reasoning is not None, calls=harmony_calls,
                    continued=continued is not None,
                )
            )  # fmt: skip
        elif form.reasoning is not None:
            self._stages.append(reasoning.PARSERS[form.reasoning](prompt, continued))
        if form.tools is not None and tools_offered and not harmony_calls:
            self._stages.append(tools.PARSERS[form.tools](tools_offered))
        self.special_tokens = frozenset(token for stage in self._stages for token in stage.special_tokens)

    @property
    def may_reason(self) -> bool:
        """What is still to come may be reasoning."""
        return any(stage.may_reason for stage in self._stages)

    @property
    def reasons(self) -> bool:
        """What is being read is reasoning."""
        return any(stage.reasons for stage in self._stages)

    def feed(self, text: str, final: bool = False) -> Parsed:
        """Take the next piece of the answer; return what it adds. final: nothing follows."""
        out = Parsed(content=text)
        for stage in self._stages:
            parsed = stage.feed(out.content, final)
            out.content = parsed.content
            out.reasoning += parsed.reasoning
            out.calls += parsed.calls
        if not self._parallel:
            out.calls = [call for call in out.calls if call.index == 0]
        return out


def _chosen(field: str, name: str, known: Sequence[str], detected: str | None) -> str | None:
    if name == "auto":
        return detected
    if name == "none":
        return None
    if name not in known:
        raise ConfigError(f"{field}={name!r}: must be auto, none or one of {', '.join(sorted(known))}")
    return name
