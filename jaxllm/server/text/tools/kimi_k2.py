"""Kimi K2: <|tool_call_begin|>functions.NAME:0<|tool_call_argument_begin|>{...}<|tool_call_end|>, all of them between
<|tool_calls_section_begin|> and <|tool_calls_section_end|>. What stands before the arguments is the call's id.
"""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, calls, text
from jaxllm.server.tool_choice import MAX_NAME

_SECTION, _CALL, _ARGUMENTS = "<|tool_calls_section_begin|>", "<|tool_call_begin|>", "<|tool_call_argument_begin|>"
_CALL_END, _SECTION_END = "<|tool_call_end|>", "<|tool_calls_section_end|>"


class KimiK2(ToolParser):
    special_tokens = (_SECTION, _CALL, _ARGUMENTS, _CALL_END, _SECTION_END)
    openers = (_SECTION, _CALL)
    closers = (_CALL_END, _SECTION_END)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        number: Format = {"type": "regex", "pattern": "[0-9]{1,3}"}
        return calls(
            functions, several, lambda name: f"{_CALL}functions.{name}:", _CALL_END,
            before=_SECTION, after=_SECTION_END, then=(number, text(_ARGUMENTS)),
        )  # fmt: skip

    def section(self, opener: str) -> Course[None]:
        if opener == _SECTION:
            yield from self.expect(_CALL)
        call_id = (yield from self.text_until(_ARGUMENTS, limit=MAX_NAME))[0].strip()
        yield from self.json_object(call_id.removeprefix("functions.").partition(":")[0], call_id)
