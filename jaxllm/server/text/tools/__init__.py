"""Which part of an answer calls tools. The names are those of vLLM's --tool-call-parser.

parser  ToolParser, what all of them share: content around calls, calls in JSON
typed   arguments between tags, by the tool's schema; literals: Python's literals as JSON
written how calls are written, for the grammar of an answer that has to call; schemas: what those of arguments say;
        literal_grammar: the arguments of calls in Python
The rest is one file per format.
"""

from jaxllm.server.text.tools.deepseek import DeepSeekV3, DeepSeekV31
from jaxllm.server.text.tools.deepseek_v32 import DeepSeekV32
from jaxllm.server.text.tools.generic_json import GenericJson
from jaxllm.server.text.tools.glm45 import Glm45
from jaxllm.server.text.tools.granite import Granite, Granite20B
from jaxllm.server.text.tools.hermes import Hermes
from jaxllm.server.text.tools.internlm import InternLM
from jaxllm.server.text.tools.jamba import Jamba
from jaxllm.server.text.tools.kimi_k2 import KimiK2
from jaxllm.server.text.tools.llama3_json import Llama3Json
from jaxllm.server.text.tools.mistral import Mistral
from jaxllm.server.text.tools.parser import ToolParser
from jaxllm.server.text.tools.phi4_mini import Phi4Mini
from jaxllm.server.text.tools.pythonic import Lfm2, Llama4Pythonic, Pythonic
from jaxllm.server.text.tools.qwen3_coder import Qwen3Coder, SeedOss

PARSERS: dict[str, type[ToolParser]] = {
    "deepseek_v3": DeepSeekV3,
    "deepseek_v31": DeepSeekV31,
    "deepseek_v32": DeepSeekV32,
    "glm45": Glm45,
    "granite": Granite,
    "granite-20b-fc": Granite20B,
    "hermes": Hermes,
    "internlm": InternLM,
    "jamba": Jamba,
    "json": GenericJson,
    "kimi_k2": KimiK2,
    "lfm2": Lfm2,
    "llama3_json": Llama3Json,
    "llama4_json": Llama3Json,
    "llama4_pythonic": Llama4Pythonic,
    "mistral": Mistral,
    "phi4_mini_json": Phi4Mini,
    "pythonic": Pythonic,
    "qwen3_coder": Qwen3Coder,
    "seed_oss": SeedOss,
}

_SIGNS = (
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("<seed:tool_call>", "seed_oss"),
    ("<parameter=", "qwen3_coder"),
    ("<arg_key>", "glm45"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|action_start|>", "internlm"),
    ("functools[", "phi4_mini_json"),
    ("<function_call>", "granite-20b-fc"),
    ("<tool_calls>", "jamba"),
    ("<tool_call>", "hermes"),
    ("<|tool_call|>", "granite"),
    ("｜DSML｜", "deepseek_v32"),
    ("<|tool_list_start|>", "lfm2"),
    ("[func_name1(", "pythonic"),
    ("<|python_tag|>", "llama3_json"),
    ('{"name": function name, "parameters":', "llama3_json"),
)


def detect(template: str) -> str | None:
    """The parser for models with this chat template, where the template tells of it."""
    if "<｜tool▁calls▁begin｜>" in template:
        return "deepseek_v3" if "```json" in template else "deepseek_v31"
    if "<function=" in template and "<parameter=" not in template:  # functionary's, with JSON inside
        return None
    name = next((name for sign, name in _SIGNS if sign in template), None)
    return "llama4_pythonic" if name == "pythonic" and "<|header_start|>" in template else name


__all__ = ["PARSERS", "ToolParser", "detect"]
