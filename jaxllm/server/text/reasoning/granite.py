"""Granite 3.2: "Here is my thought process:" and "Here is my response:"; 3.3: <think>, and the rest in <response>."""

from jaxllm.server.text.reading import Course
from jaxllm.server.text.reasoning.tags import ReasoningParser


class Granite(ReasoningParser):
    special_tokens = ("<think>", "</think>", "<response>", "</response>")
    starts = ("<think>", "Here is my thought process:", "Here's my thought process:")
    ends = ("</think>", "Here is my response:", "Here's my response:")

    def content(self) -> Course[None]:
        if not (yield from self.follows("<response>")):
            yield from super().content()
            return
        self.take(len("<response>"))
        yield from self.skip_space()
        yield from self.until(self._content, "</response>")
        yield from super().content()

    def _content(self, text: str) -> None:
        self.out.content.append(text)
