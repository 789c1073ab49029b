"""Answers as models write them, and what is to be read out of them."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxllm.server.text import AnswerFormat, AnswerReader


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": list(properties)[:1]}
    return {"type": "function", "function": {"name": name, "description": f"{name}.", "parameters": parameters}}


STRING, INTEGER = {"type": "string", "description": "s"}, {"type": "integer", "description": "i"}
TOOLS = [
    tool("get_weather", city=STRING, days=INTEGER),
    tool("send", text=STRING, to={"type": "array", "items": STRING, "description": "a"}),
    tool("now"),
]


@dataclass
class Answer:
    """What was read of an answer. calls: name and arguments' JSON of each."""

    content: str = ""
    reasoning: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)

    @property
    def parsed(self) -> list[tuple[str, Any]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]

    @property
    def text(self) -> str:
        """All of it."""
        return self.reasoning + self.content + "".join(name + arguments for name, arguments in self.calls)


def read(
    pieces: Iterable[str],
    tools: str | None = None,
    reasoning: str | None = None,
    offered: Sequence[dict[str, Any]] = TOOLS,
    **options: Any,
) -> Answer:
    """Feed the pieces, then the end; join what came."""
    reader = AnswerReader(AnswerFormat(tools, reasoning), offered, **options)
    answer = Answer()
    for part in [*(reader.feed(piece) for piece in pieces), reader.feed("", final=True)]:
        answer.content += part.content
        answer.reasoning += part.reasoning
        for delta in part.calls:
            if delta.name:
                assert delta.index == len(answer.calls)
                assert delta.id
                answer.calls.append((delta.name, ""))
                answer.ids.append(delta.id)
            name, arguments = answer.calls[delta.index]
            answer.calls[delta.index] = name, arguments + delta.arguments
    return answer


def same(one: Answer, other: Answer) -> bool:
    """Alike but for the ids, most of which are drawn."""
    return (one.content, one.reasoning, one.calls) == (other.content, other.reasoning, other.calls)


PARIS = {"city": "Paris", "days": 3}
HARD = {"text": 'a "quoted" \\ line\nof {braces]} é\u2028 <b>', "to": ["x", "[y]"]}
HARD_JSON = json.dumps(HARD, ensure_ascii=False)
WEATHER, SEND, NOW = ("get_weather", PARIS), ("send", HARD), ("now", {})

TRANSCRIPTS: dict[str, list[tuple[str, str, list[tuple[str, Any]]]]] = {
    "hermes": [
        (
            "I look that up.\n"
            '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n</tool_call>\n'
            f'<tool_call>\n{{"name": "send", "arguments": {HARD_JSON}}}\n</tool_call>',
            "I look that up.",
            [WEATHER, SEND],
        ),
        ('<tool_call>{"arguments": {}, "name": "now"}</tool_call>\n\nDone.', "Done.", [NOW]),
        ('a <tool_call>{"name": "now"}</tool_call> b', "a b", [NOW]),
        (
            '<tool_call>{"name": "send", "arguments": {"text": "</tool_call> <tool_call>{\\"name\\": 1}", "to": []}}'
            "</tool_call>",
            "",
            [("send", {"text": '</tool_call> <tool_call>{"name": 1}', "to": []})],
        ),
        ('<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', "", [("now", {"a": "é"})]),
        ('<tool_call>{"name": "now", "arguments": null}</tool_call>', "", [NOW]),
        ('<tool_call>{"name": "send", "arguments": {"text": "a\nb\tc"}}', "", [("send", {"text": "a\nb\tc"})]),
        ('<tool_call>{"name": "now", "arguments": {"a": [1, {"b": "\\ud83d\\ude00"}], "c": -1.5e3, "d": null}}', "",
         [("now", {"a": [1, {"b": "😀"}], "c": -1500.0, "d": None})]),
    ],
    "llama3_json": [
        ('<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}', "", [WEATHER]),
        ('{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}; {"name": "now", "parameters": {}}', "",
         [WEATHER, NOW]),
        ('{"type": "function", "name": "now", "parameters": {}}', "", [NOW]),
        ('A set {1, 2} and {"name": "Bob", "age": 3}, {"name": "now", "x": 1}.',
         'A set {1, 2} and {"name": "Bob", "age": 3}, {"name": "now", "x": 1}.', []),
        ('<|python_tag|>brave_search.call(query="x")', '<|python_tag|>brave_search.call(query="x")', []),
    ],
    "json": [
        ('[{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}, {"name": "now", "parameters": {}}]', "",
         [WEATHER, NOW]),
        ('A list [1, 2], and [{"name": "Bob", "parameters": {}}].',
         'A list [1, 2], and [{"name": "Bob", "parameters": {}}].', []),
    ],
    "pythonic": [
        ('[get_weather(city="Paris", days=3), send(text=\'a "quoted" \\\\ line\\nof {braces]} é\\u2028 <b>\', '
         'to=["x", \'[y]\',])]', "", [WEATHER, SEND]),
        ("[now()]", "", [NOW]),
        ('Lists: [1, 2], [now], [now(3)], [other(a=1)] and [x](y).',
         'Lists: [1, 2], [now], [now(3)], [other(a=1)] and [x](y).', []),
        ("[now(a=True, b=None, c=(1, -2.5, 1_000), d={'k': {3: 'v'}}, e='''it's \"x\"''', f='', g=\"\\x41\\q\")]", "",
         [("now", {"a": True, "b": None, "c": [1, -2.5, 1000], "d": {"k": {"3": "v"}}, "e": 'it\'s "x"', "f": "",
                   "g": "A\\q"})]),
    ],
    "llama4_pythonic": [
        ('<|python_start|>[get_weather(city="Paris", days=3), now()]<|python_end|>', "", [WEATHER, NOW]),
        ("Fine. [now()]", "Fine.", [NOW]),
    ],
    "mistral": [
        (f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {{"city": "Paris", "days": 3}}, "id": "abcDEF123"}}, '
         f'{{"name": "send", "arguments": {HARD_JSON}}}]', "", [WEATHER, SEND]),
        (f'Sure.[TOOL_CALLS]get_weather[ARGS]{{"city": "Paris", "days": 3}}[TOOL_CALLS]send[ARGS]{HARD_JSON}', "Sure.",
         [WEATHER, SEND]),
        ('[TOOL_CALLS]now[CALL_ID]abcDEF123[ARGS]{}', "", [NOW]),
        ('[TOOL_CALLS]get_weather{"city": "Paris", "days": 3}', "", [WEATHER]),
    ],
    "qwen3_coder": [
        ("On it.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n"
         "</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=send>\n<parameter=text>\n"
         f"{HARD['text']}\n</parameter>\n<parameter=to>\n[\"x\", \"[y]\"]\n</parameter>\n</function>\n</tool_call>",
         "On it.", [WEATHER, SEND]),
        ("<function=now>\n</function>\n</tool_call>", "", [NOW]),
        ("<tool_call>\n<function=send>\n<parameter=text>\n\n  def f():\n    return '<parameter=x>'\n\n</parameter>\n"
         "<parameter=to>['a', \"b\"]</parameter></function></tool_call>", "",
         [("send", {"text": "\n  def f():\n    return '<parameter=x>'\n", "to": ["a", "b"]})]),
        ("<tool_call><function=get_weather><parameter=city>7</parameter><parameter=days>soon</parameter></function>",
         "", [("get_weather", {"city": "7", "days": "soon"})]),
    ],
    "seed_oss": [
        ("<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n<parameter=days>3</parameter>\n"
         "</function>\n</seed:tool_call>", "", [WEATHER]),
    ],
    "deepseek_v3": [
        ("Let me see.<｜tool▁calls▁begin｜>"
         "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
         '{"city": "Paris", "days": 3}\n```<｜tool▁call▁end｜>\n'
         "<｜tool▁call▁begin｜>function<｜tool▁sep｜>send\n```json\n"
         f"{HARD_JSON}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "Let me see.", [WEATHER, SEND]),
    ],
    "deepseek_v31": [
        ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 3}'
         f"<｜tool▁call▁end｜><｜tool▁call▁begin｜>send<｜tool▁sep｜>{HARD_JSON}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
         "", [WEATHER, SEND]),
    ],
    "deepseek_v32": [
        ('I see.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n'
         '<｜DSML｜parameter name="city" string="true">Paris</｜DSML｜parameter>\n'
         '<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
         '<｜DSML｜invoke name="send">\n'
         f'<｜DSML｜parameter name="text" string="true">{HARD["text"]}</｜DSML｜parameter>\n'
         '<｜DSML｜parameter name="to" string="false">["x", "[y]"]</｜DSML｜parameter>\n</｜DSML｜invoke>\n'
         "</｜DSML｜function_calls>", "I see.", [WEATHER, SEND]),
        ('<｜DSML｜tool_calls>\n<｜DSML｜invoke name="now">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>', "", [NOW]),
    ],
    "lfm2": [
        ("<|tool_call_start|>[get_weather(city='Paris', days=3)]<|tool_call_end|>I look.", "I look.", [WEATHER]),
    ],
    "glm45": [
        ("I see.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
         "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>send\n<arg_key>text</arg_key>\n"
         f"<arg_value>{HARD['text']}</arg_value>\n<arg_key>to</arg_key>\n<arg_value>[\"x\", \"[y]\"]</arg_value>\n"
         "</tool_call>", "I see.", [WEATHER, SEND]),
        ("<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key>"
         "<arg_value>3</arg_value></tool_call><tool_call>now</tool_call>", "", [WEATHER, NOW]),
        ("<tool_call>\nnow\n</tool_call>", "", [NOW]),
    ],
    "kimi_k2": [
        ('I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>'
         '{"city": "Paris", "days": 3}<|tool_call_end|><|tool_call_begin|>functions.send:1<|tool_call_argument_begin|>'
         f"{HARD_JSON}<|tool_call_end|><|tool_calls_section_end|>", "I look.", [WEATHER, SEND]),
    ],
    "granite": [
        ('<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, '
         f'{{"name": "send", "arguments": {HARD_JSON}}}]', "", [WEATHER, SEND]),
        ('<tool_call>[{"name": "now", "arguments": {}}]</tool_call>', "", [NOW]),
    ],
    "granite-20b-fc": [
        ('<function_call> {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n'
         f'<function_call> {{"name": "send", "arguments": {HARD_JSON}}}', "", [WEATHER, SEND]),
    ],
    "internlm": [
        ('I look.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "Paris", "days": 3}}'
         "<|action_end|>", "I look.", [WEATHER]),
        ("<|action_start|><|interpreter|>\nprint(1)<|action_end|>",
         "<|action_start|><|interpreter|>\nprint(1)<|action_end|>", []),
    ],
    "jamba": [
        ('I look.<tool_calls>[\n  {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}},\n  '
         f'{{"name": "send", "arguments": {HARD_JSON}}}\n]</tool_calls>', "I look.", [WEATHER, SEND]),
    ],
    "phi4_mini_json": [
        ('functools[{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}, '
         f'{{"name": "send", "arguments": {HARD_JSON}}}]', "", [WEATHER, SEND]),
        ("import functools\nfunctools.cache [1]", "import functools\nfunctools.cache [1]", []),
    ],
    "openai": [
        ("<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
         'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 3}<|call|>',
         "I look.", [WEATHER]),
        (f" to=functions.send<|channel|>commentary json<|message|>{HARD_JSON}<|call|>", "", [SEND]),
        ("<|channel|>final<|message|>Hello.<|return|>", "Hello.", []),
        ("No channel at all.", "No channel at all.", []),
    ],
}  # fmt: skip
"""Per parser: an answer, and the content and calls in it."""

BROKEN: dict[str, list[tuple[str, str]]] = {
    "hermes": [
        ("<tool_call>nonsense</tool_call>", "<tool_call>nonsense</tool_call>"),
        ('<tool_call>{"nome": "now"}</tool_call>', '<tool_call>{"nome": "now"}</tool_call>'),
        ('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>'),
        ('<tool_call>{"name": "\\ud800"}</tool_call>', '<tool_call>{"name": "\\ud800"}</tool_call>'),
        ('<tool_call>{"name": "no', '<tool_call>{"name": "no'),
        ("x <tool_call>", "x <tool_call>"),
        ("x <tool_ca", "x <tool_ca"),
        ("</tool_call> alone", "</tool_call> alone"),
        ('<tool_call> {"arguments": {"a": 1]}', '<tool_call> {"arguments": {"a": 1]}'),
    ],
    "llama3_json": [
        ('{"name": "now", "parameters"', '{"name": "now", "parameters"'),
        ("<|python_tag|>", "<|python_tag|>"),
    ],
    "pythonic": [("[now(", "[now("), ("[now(a", "[now(a"), ("[no\nw()]", "[no\nw()]"), ("[", "[")],
    "mistral": [("[TOOL_CALLS]", "[TOOL_CALLS]"), ("[TOOL_CALLS]now oops", "[TOOL_CALLS]now oops")],
    "qwen3_coder": [("<tool_call>\n<fun", "<tool_call>\n<fun"), ("<function=\n\n>", "<function=\n\n>")],
    "deepseek_v3": [("<｜tool▁call▁begin｜>function", "<｜tool▁call▁begin｜>function")],
    "deepseek_v31": [("<｜tool▁calls▁begin｜>x", "<｜tool▁calls▁begin｜>x")],
    "glm45": [("<tool_call>now", "<tool_call>now"), ("<tool_call>now\nand then", "<tool_call>now\nand then")],
    "kimi_k2": [("<|tool_call_begin|>" + "x" * 300, "<|tool_call_begin|>" + "x" * 300)],
    "jamba": [("<tool_calls>[{]}", "<tool_calls>[{]}")],
    "openai": [("<|channel|>" + "x" * 300, "<|channel|>" + "x" * 300), ("<|start|>assistant", "<|start|>assistant")],
}
"""Per parser: answers that are no calls; they stay text."""
