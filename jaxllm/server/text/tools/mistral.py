"""Mistral: [TOOL_CALLS][{"name": ..., "arguments": {...}}, ...], or since tokenizer version 11
[TOOL_CALLS]name[ARGS]{...} for each call, with [CALL_ID]id behind the name in some.
"""

import secrets
import string
from collections.abc import Sequence

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.written import Format, Function, calls, either, json_calls

_ID_CHARACTERS = string.ascii_letters + string.digits


class Mistral(ToolParser):
    special_tokens = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    openers = ("[TOOL_CALLS]",)

    @classmethod
    def written(cls, functions: Sequence[Function], several: bool) -> Format:
        """Either form: which of them is the model's is for it to say."""
        older = json_calls(functions, several, before="[TOOL_CALLS][", between=", ", after="]")
        newer = calls(functions, several, lambda name: f"[TOOL_CALLS]{name}[ARGS]", "")
        return either([older, newer])

    def section(self, opener: str) -> Course[None]:
        if (yield from self.skip_space()) in ("[", "{"):
            yield from self.json_calls()
            return
        name, call_id = (yield from self.name()), ""
        if (yield from self.skip("[CALL_ID]")):
            call_id = yield from self.name()
        yield from self.skip("[ARGS]")
        yield from self.json_object(name, call_id)

    def new_id(self) -> str:
        """Nine letters or digits: the models' templates refuse others."""
        return "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9))
