"""InternLM 2 and 2.5: <|action_start|><|plugin|>{"name": ..., "parameters": {...}}<|action_end|>, one per call."""

from jaxllm.server.text.reading import Course
from jaxllm.server.text.tools.parser import ToolParser


class InternLM(ToolParser):
    special_tokens = ("<|action_start|>", "<|plugin|>", "<|action_end|>")
    openers = ("<|action_start|>",)
    closers = ("<|action_end|>",)

    def section(self, opener: str) -> Course[None]:
        yield from self.expect("<|plugin|>")  # <|interpreter|> runs code instead: no call of a tool
        yield from self.json_call()
