"""Reasoning between two tags at the beginning of an answer."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course, Reader


class ReasoningParser(Reader):
    """Reads `start` reasoning `end` content. White space next to the tags is left out.

    Many templates write the first tag into the prompt, or both where no reasoning is wanted.

    Attributes:
        starts, ends: the tags, in each of their spellings.
        enders: marks that end reasoning, too, and belong to the content.
        implied: the models leave the first tag out: unless the prompt has closed it, an answer begins with reasoning.
    """

    starts: Sequence[str] = ("<think>",)
    ends: Sequence[str] = ("</think>",)
    enders: Sequence[str] = ()
    implied = False

    def __init__(self, prompt: str = "", continued: str | None = None):
        """prompt: what the answer follows. continued: the part of it that is the answer's own beginning, if one is."""
        super().__init__()
        if continued is None:
            prompt = prompt.rstrip()
            self._opened = prompt.endswith(tuple(self.starts))
            self._closed = prompt.endswith(tuple(self.ends))
        else:
            begun = max(continued.rfind(tag) for tag in self.starts)
            self._opened = begun >= 0 and not any(tag in continued[begun:] for tag in self.ends)
            self._closed = not self._opened
        self._space = ""
        self.may_reason = not self._closed
        self.reasons = self.may_reason and (self._opened or self.implied)

    def marks(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What begins thinking, none where the answer thinks from its beginning on; and what ends it, none where it
        does not think."""
        if self._closed:
            return (), ()
        return () if self._opened or self.implied else tuple(self.starts), tuple(self.ends)

    def read(self) -> Course[None]:
        if not self._closed and ((yield from self._start()) or self._opened or self.implied):
            self.reasons = True
            yield from self.skip_space()
            mark = yield from self.until(self._reasoning, *self.ends, *self.enders)
            self.reasons = self.may_reason = False
            if mark in self.enders:
                self.out.content.append(mark)
            else:
                yield from self.skip_space()
        self.may_reason = False
        yield from self.content()

    def content(self) -> Course[None]:
        """All that follows."""
        while (yield from self.peek()):
            self.out.content.append(self.take(len(self._text) - self._at))

    def _start(self) -> Course[bool]:
        """Take the first tag, with white space before it; nothing where there is none."""
        space = ""
        while (character := (yield from self.peek())) and character.isspace():
            space += self.take()
        for tag in self.starts:
            if (yield from self.follows(tag)):
                self.take(len(tag))
                return True
        if not (self._opened or self.implied):
            self.out.content.append(space)
        return False

    def _reasoning(self, text: str) -> None:
        """White space at the end says nothing; elsewhere it waits for the text behind it."""
        if stripped := text.rstrip():
            self.out.reasoning.append(self._space + stripped)
            self._space = text[len(stripped) :]
        else:
            self._space += text


class ThinkTags(ReasoningParser):
    """<think>...</think>, written by the model or by the prompt."""

    special_tokens: Sequence[str] = ("<think>", "</think>")


class DeepSeekR1(ThinkTags):
    """<think>...</think>, the first of which may be missing."""

    special_tokens = ("<think>", "</think>", "<｜tool▁calls▁begin｜>")
    enders = ("<｜tool▁calls▁begin｜>",)
    implied = True


class KimiK2(ThinkTags):
    special_tokens = ("<think>", "</think>", "<|tool_calls_section_begin|>")
    enders = ("<|tool_calls_section_begin|>",)


class Mistral(ReasoningParser):
    special_tokens = ("[THINK]", "[/THINK]")
    starts = ("[THINK]",)
    ends = ("[/THINK]",)


class SeedOss(ReasoningParser):
    special_tokens = ("<seed:think>", "</seed:think>")
    starts = ("<seed:think>",)
    ends = ("</seed:think>",)
