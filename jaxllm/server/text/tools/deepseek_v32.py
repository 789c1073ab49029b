"""DeepSeek V3.2 and V4: <｜DSML｜function_calls> (tool_calls in V4), then for each call <｜DSML｜invoke name="NAME">,
its arguments as <｜DSML｜parameter name="KEY" string="true or false">VALUE</｜DSML｜parameter>, and </｜DSML｜invoke>.
Strings stand as they are, other values as JSON.
"""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.typed import TypedParser
from jaxllm.server.text.tools.written import Format, Function, typed_calls
from jaxllm.server.tool_choice import MAX_NAME

_BLOCKS = ("<｜DSML｜function_calls>", "<｜DSML｜tool_calls>")
_ARGUMENT_END = "</｜DSML｜parameter>"
_CALL, _ARGUMENT = '<｜DSML｜invoke name="', '<｜DSML｜parameter name="'


class DeepSeekV32(TypedParser):
    special_tokens = ("｜DSML｜",)
    openers = (*_BLOCKS, _CALL)
    closers = ("</｜DSML｜function_calls>", "</｜DSML｜tool_calls>")

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        return typed_calls(
            functions, several, lambda name: f'{_CALL}{name}">\n', "</｜DSML｜invoke>\n",
            lambda name, is_string: f'{_ARGUMENT}{name}" string="{str(is_string).lower()}">', f"{_ARGUMENT_END}\n",
            excluded=_ARGUMENT_END, before=f"{_BLOCKS[0]}\n", after=cls.closers[0],
        )  # fmt: skip

    def section(self, opener: str) -> Course[None]:
        if opener != _CALL:
            yield from self.expect(_CALL)
        name, _ = yield from self.text_until('">', limit=MAX_NAME)
        self.begin_typed(name)
        while (yield from self.skip(_ARGUMENT)):
            key, _ = yield from self.text_until('" string="', limit=MAX_NAME)
            kind, _ = yield from self.text_until('">', limit=MAX_NAME)
            yield from self.argument(key, _ARGUMENT_END, types={"string"} if kind == "true" else set())
        yield from self.expect("</｜DSML｜invoke>")
        self.end_typed()
