"""For models without a form of calls: [{"name": ..., "parameters": {...}}, ...], which a grammar makes them write."""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, json_calls


class GenericJson(ToolParser):
    openers = ("[",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return json_calls(functions, several, key="parameters", before="[", between=", ", after="]")

    def section(self, opener: str) -> Course[None]:
        """The calls behind the bracket. Any list begins so: only one of calls of the tools is meant."""
        while True:
            yield from self.json_call(bare=True)
            if not (yield from self.skip(",")):
                break
        yield from self.expect("]")
        self.end()
