"""DeepSeek V3: <｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME, a line with ```json, the arguments, a line with ``` and
<｜tool▁call▁end｜>. V3.1: <｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>. Around all of them stand
<｜tool▁calls▁begin｜> and <｜tool▁calls▁end｜>.
"""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, calls
from jaxllm.server.tool_choice import MAX_NAME

_CALLS, _CALL, _SEPARATOR = "<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>"
_CALL_END, _CALLS_END = "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"


class DeepSeekV31(ToolParser):
    special_tokens = (_CALLS, _CALL, _SEPARATOR, _CALL_END, _CALLS_END)
    openers = (_CALLS, _CALL)
    closers = (_CALL_END, _CALLS_END)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return calls(
            functions, several, lambda name: f"{_CALL}{name}{_SEPARATOR}", _CALL_END, before=_CALLS, after=_CALLS_END
        )

    def section(self, opener: str) -> Course[None]:
        if opener == _CALLS:
            yield from self.expect(_CALL)
        yield from self.json_object((yield from self.before_arguments()).strip())
        if (yield from self.skip("```")):
            self.end()

    def before_arguments(self) -> Course[str]:
        """Take all that stands before the arguments; the name."""
        return (yield from self.text_until(_SEPARATOR, limit=MAX_NAME))[0]


class DeepSeekV3(DeepSeekV31):
    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return calls(
            functions, several, lambda name: f"{_CALL}function{_SEPARATOR}{name}\n```json\n", f"\n```{_CALL_END}",
            before=_CALLS, between="\n", after=_CALLS_END,
        )  # fmt: skip

    def before_arguments(self) -> Course[str]:
        yield from self.text_until(_SEPARATOR, limit=MAX_NAME)
        name = (yield from self.text_until("\n", limit=MAX_NAME))[0]
        yield from self.expect("```json")
        return name
