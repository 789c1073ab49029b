"""Llama 3.2 and 4, ToolACE and others: [name(key=value, ...), ...], Python calls in a list.

Llama 4 may put them between <|python_start|> and <|python_end|>; LFM 2 puts them between <|tool_call_start|> and
<|tool_call_end|>.
"""

import json
from collections.abc import Sequence

from jaxllm.server.text.reading import BrokenError, Course
from jaxllm.server.text.tools.literal_grammar import arguments_grammar
from jaxllm.server.text.tools.literals import LiteralReader
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, sequence, tagged, text


class Pythonic(LiteralReader, ToolParser):
    openers: Sequence[str] = ("[",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        contents: list[Format] = [{"type": "grammar", "grammar": arguments_grammar(each)} for each in functions]
        return tagged(
            functions, several, lambda name: f"{name}(", contents, ")", before="[", between=", ", after="]"
        )  # fmt: skip

    def section(self, opener: str) -> Course[None]:
        """The list, behind its bracket. Any list begins so: only one of calls of the tools is meant."""
        while True:
            yield from self._call()
            if not (yield from self.skip(",")):
                break
        yield from self.expect("]")
        self.end()

    def _call(self) -> Course[None]:
        name = yield from self.name()
        if name not in self.functions:
            raise BrokenError(name)
        yield from self.expect("(")
        key = ""
        if (yield from self.skip_space()) != ")":
            key = yield from self._key()
        self.begin(name)
        self.arguments("{")
        while key:
            self.arguments(json.dumps(key, ensure_ascii=False) + ": ")
            yield from self.python_value(self.arguments)
            key = ""
            if (yield from self.skip(",")) and (yield from self.skip_space()) != ")":
                key = yield from self._key()
                self.arguments(", ")
        yield from self.expect(")")
        self.arguments("}")
        self.end()

    def _key(self) -> Course[str]:
        key = yield from self.name()
        yield from self.expect("=")
        return key


class Llama4Pythonic(Pythonic):
    special_tokens: Sequence[str] = ("<|python_start|>", "<|python_end|>")
    openers: Sequence[str] = ("<|python_start|>", "[")
    closers: Sequence[str] = ("<|python_end|>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return sequence(text(cls.openers[0]), super().written(functions, several), text(cls.closers[0]))

    def section(self, opener: str) -> Course[None]:
        if opener != "[":
            yield from self.expect("[")
        yield from super().section(opener)


class Lfm2(Llama4Pythonic):
    special_tokens = ("<|tool_call_start|>", "<|tool_call_end|>")
    openers = ("<|tool_call_start|>", "[")
    closers = ("<|tool_call_end|>",)
