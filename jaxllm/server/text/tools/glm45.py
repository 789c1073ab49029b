"""GLM 4.5 to 4.7: <tool_call>NAME, then <arg_key>KEY</arg_key><arg_value>VALUE</arg_value> for each argument, and
</tool_call>. Strings stand as they are, other values as JSON.
"""

from collections.abc import Sequence

from jaxllm.server.text.reading import BrokenError, Course
from jaxllm.server.text.tools.typed import TypedParser
from jaxllm.server.text.tools.written import Format, Function, typed_calls
from jaxllm.server.tool_choice import MAX_NAME

_END = "</tool_call>"


class Glm45(TypedParser):
    special_tokens = ("<tool_call>", _END, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")
    openers = ("<tool_call>",)
    closers = (_END,)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return typed_calls(
            functions, several, lambda name: f"<tool_call>{name}\n", _END,
            lambda name, is_string: f"<arg_key>{name}</arg_key>\n<arg_value>", "</arg_value>\n",
            excluded="</arg_value>", between="\n",
        )  # fmt: skip

    def section(self, opener: str) -> Course[None]:
        name, mark = yield from self.text_until("\n", "<arg_key>", _END, limit=MAX_NAME)
        if not name.strip():  # a line break before it
            name, mark = yield from self.text_until("\n", "<arg_key>", _END, limit=MAX_NAME)
        if mark == "\n":
            following = yield from self.skip_space()
            if not following or not ((yield from self.follows("<arg_key>")) or (yield from self.follows(_END))):
                raise BrokenError("no arguments")
        self.begin_typed(name.strip())
        while mark == "<arg_key>" or (mark != _END and (yield from self.skip("<arg_key>"))):
            mark = ""
            key = (yield from self.text_until("</arg_key>", limit=MAX_NAME))[0].strip()
            yield from self.expect("<arg_value>")
            yield from self.argument(key, "</arg_value>")
        if mark != _END:
            yield from self.expect(_END)
        self.end_typed()
