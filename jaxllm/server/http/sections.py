"""Answers that are told section by section: a run of reasoning, one of text, a call, and so on in their order."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from jaxllm.server.grpc.stubs import jaxllm_pb2 as pb
from jaxllm.server.http.answers import Choice
from jaxllm.server.http.errors import from_number
from jaxllm.server.http.forms import Body


@dataclass(slots=True)
class Section:
    """A run of an answer that is of one kind.

    Attributes:
        place: among the sections, from 0.
        call: the call's index in the answer, where it is one; so its id and name.
        complete: it has ended, and not because the answer was cut off.
    """

    kind: Literal["reasoning", "text", "call"]
    place: int
    call: int = -1
    call_id: str = ""
    name: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[pb.TokenLogprob] = field(default_factory=list)
    open: bool = True
    complete: bool = False

    @property
    def text(self) -> str:
        """What was generated: text, reasoning or the arguments' JSON."""
        return "".join(self.pieces)


class SectionedAnswer:
    """Takes the chunks of a request with one answer; a dialect says what is told at each turn.

    Attributes:
        sections: so far.
        choice: the counts, and how it finished.
    """

    def __init__(self, body: Body) -> None:
        self.sections: list[Section] = []
        self.choice = Choice(0)
        self._names, self._prompt_field = body.names, body.prompt_field  # the body itself is not to be held
        self._begun = False
        self._logprobs: list[pb.TokenLogprob] = []  # of tokens whose text has not come yet
        self._num_reasoning = 0  # tokens

    @property
    def cut_off(self) -> bool:
        """It ended at a limit of tokens."""
        return self.choice.finish is not None and self.choice.finish.reason == pb.FINISH_REASON_LENGTH

    def add(self, chunks: Iterable[pb.GenerateChunk]) -> None:
        """See generation.Answer."""
        for chunk in chunks:
            if chunk.HasField("error"):
                error = from_number(chunk.error.code, chunk.error.message, chunk.error.param)
                raise error.renamed(self._names, self._prompt_field)
            try:
                self.choice.add(chunk)
            finally:  # also with what ends it from without
                self.choice.clear()
                self._take(chunk)
            if self.choice.finish is not None:
                if self._logprobs and self.sections and (last := self.sections[-1]).open and last.kind == "text":
                    self._extend(last, "")  # a token without text ended it
                self._close(complete=not self.cut_off)
                self.finished()

    def begun(self) -> None:
        """The first chunk has come: the prompt was taken."""

    def opened(self, section: Section) -> None:
        """A section begins."""

    def extended(self, section: Section, piece: str, logprobs: list[pb.TokenLogprob]) -> None:
        """What is new of the last section; logprobs: of the tokens of a text's piece, where they were asked for."""

    def closed(self, section: Section) -> None:
        """The last section has ended."""

    def finished(self) -> None:
        """The answer has ended."""

    def _take(self, chunk: pb.GenerateChunk) -> None:
        if not self._begun:
            self._begun = True
            self.begun()
        reasoning = max(0, chunk.counts.reasoning - self._num_reasoning)
        self._num_reasoning += reasoning
        self._logprobs.extend(chunk.logprobs[reasoning:])  # the first of a chunk's tokens are those of its reasoning
        calls = list(chunk.tool_calls)
        # The rest of the call that is open: what else the chunk holds was generated behind it.
        while calls and not calls[0].name and self.sections and self.sections[-1].call == calls[0].index:
            self._extend(self.sections[-1], calls.pop(0).arguments)
        if chunk.reasoning:
            self._extend(self._section("reasoning"), chunk.reasoning)
        if chunk.text:
            self._extend(self._section("text"), chunk.text)
        for delta in calls:
            section = self._section("call", delta)
            if delta.arguments:
                self._extend(section, delta.arguments)

    def _section(self, kind: Literal["reasoning", "text", "call"], delta: pb.ToolCallDelta | None = None) -> Section:
        """The one that this belongs to: the last, or a new one."""
        call = delta.index if delta else -1
        if self.sections and (last := self.sections[-1]).open and (last.kind, last.call) == (kind, call):
            return last
        self._close(complete=True)
        section = Section(kind, len(self.sections), call)
        if delta:
            section.call_id, section.name = delta.id, delta.name
        self.sections.append(section)
        self.opened(section)
        return section

    def _extend(self, section: Section, piece: str) -> None:
        """Tokens are told of with the text that they come with or before; those of reasoning and calls are not."""
        section.pieces.append(piece)
        logprobs: list[pb.TokenLogprob] = []
        if section.kind != "reasoning":
            logprobs, self._logprobs = self._logprobs, []
        if section.kind == "call":
            logprobs = []
        section.logprobs.extend(logprobs)
        self.extended(section, piece, logprobs)

    def _close(self, complete: bool) -> None:
        if self.sections and (last := self.sections[-1]).open:
            last.open, last.complete = False, complete
            last.pieces = [last.text]  # an answer that is kept holds one string and not thousands
            self.closed(last)
