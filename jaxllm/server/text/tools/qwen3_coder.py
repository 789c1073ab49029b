"""Qwen 3 Coder, Qwen 3.5, Nemotron 3: <tool_call><function=NAME>, then <parameter=KEY>, a line break, the value, a line
break and </parameter> for each argument, and </function></tool_call>. Seed-OSS has tags of its own around the function.
"""

from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.typed import TypedParser
from jaxllm.server.text.tools.written import Format, Function, typed_calls
from jaxllm.server.tool_choice import MAX_NAME


class Qwen3Coder(TypedParser):
    special_tokens: Sequence[str] = ("<tool_call>", "</tool_call>")
    openers = ("<tool_call>", "<function=")  # the models leave the first out now and then
    closers = ("</tool_call>",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        opener, closer = cls.openers[0], cls.closers[0]
        return typed_calls(
            functions, several, lambda name: f"{opener}\n<function={name}>\n", f"</function>\n{closer}",
            lambda name, is_string: f"<parameter={name}>\n", "\n</parameter>\n", excluded="</parameter>", between="\n",
        )  # fmt: skip

    def section(self, opener: str) -> Course[None]:
        if opener != "<function=":
            yield from self.expect("<function=")
        name, _ = yield from self.text_until(">", limit=MAX_NAME)
        self.begin_typed(name.strip())
        # A parameter that the model forgot to close ends at what can hardly stand in a value.
        another, whole = "\n<parameter=", f"\n</function>\n{self.closers[0]}"
        mark = another if (yield from self.skip("<parameter=")) else ""
        while mark == another:
            key, _ = yield from self.text_until(">", limit=MAX_NAME)
            if (yield from self.follows("\n")):
                self.take()
            mark = yield from self.argument(key.strip(), "\n</parameter>", "</parameter>", another, whole)
            if mark.endswith("</parameter>") and (yield from self.skip("<parameter=")):
                mark = another
        if mark != whole:
            yield from self.expect("</function>")
        self.end_typed()


class SeedOss(Qwen3Coder):
    special_tokens = ("<seed:tool_call>", "</seed:tool_call>")
    openers = ("<seed:tool_call>", "<function=")
    closers = ("</seed:tool_call>",)
