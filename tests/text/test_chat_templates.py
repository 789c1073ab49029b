"""Real chat templates: prompts as transformers renders them, formats told from them, and their own calls read back."""

import inspect
import json
import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from answers import STRING, TOOLS, read, tool
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from jaxllm.errors import RequestError
from jaxllm.server.text import AnswerFormat, chat

FOLDER = Path(os.environ.get("JAXLLM_TEST_MATERIAL", Path(__file__).parents[3] / "shared/material")) / "chat_templates"


def _templates() -> Iterator[tuple[str, str]]:
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix == ".jinja":
            yield str(path.relative_to(FOLDER)), path.read_text()
        elif path.suffix == ".json" and isinstance(text := json.loads(path.read_text()).get("chat_template"), str):
            yield str(path.relative_to(FOLDER)), text


TEMPLATES = dict(_templates()) if FOLDER.is_dir() else {}
pytestmark = pytest.mark.skipif(not TEMPLATES, reason=f"no chat templates at {FOLDER}")
each_template = pytest.mark.parametrize("name", TEMPLATES)


@pytest.fixture(scope="module")
def tokenizer() -> Callable[[str], PreTrainedTokenizerFast]:
    """One that renders the named template; it encodes nothing."""

    @cache
    def make(name: str) -> PreTrainedTokenizerFast:
        fast = PreTrainedTokenizerFast(tokenizer_object=Backend(BPE()), bos_token="<s>", eos_token="</s>")
        fast.chat_template = TEMPLATES[name]
        return fast

    return make


USER = {"role": "user", "content": "How is the weather?"}
CALLS = [
    {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    for call_id, name, arguments in (
        ("abcDEF123", "get_weather", {"city": "Nice", "days": 3}),
        ("abcDEF456", "send", {"text": "Sun, [1] {2}"}),
    )
]
CALLING = {"role": "assistant", "content": "", "tool_calls": CALLS}
CONVERSATIONS: list[tuple[list[dict[str, Any]], dict[str, Any]]] = [
    ([USER], {}),
    ([{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": "Fine."}, USER], {}),
    ([USER], {"add_generation_prompt": False}),
    ([USER, {"role": "assistant", "content": "It is"}], {"continue_final_message": True}),
    ([USER], {"enable_thinking": False}),
    ([USER], {"enable_thinking": True, "thinking": True}),
    ([USER], {"documents": [{"title": "Report", "text": "Sunny.", "doc_id": 1}]}),
    ([USER], {"tools": TOOLS}),
    (
        [USER, {"role": "assistant", "content": "", "tool_calls": CALLS[:1]},
         {"role": "tool", "content": "sunny", "tool_call_id": "abcDEF123", "name": "get_weather"}],
        {"tools": TOOLS},
    ),
    ([USER, CALLING], {"tools": TOOLS, "add_generation_prompt": False}),
    ([USER, {"role": "assistant", "content": "Fine.", "reasoning_content": "Hm."}, USER], {}),
]  # fmt: skip


def as_sent(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """As OpenAI's clients send them: the arguments of calls as JSON text."""
    sent = json.loads(json.dumps(messages))
    for call in (call for message in sent for call in message.get("tool_calls", ())):
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    return sent


PARTS_ALONE = ("mistral.rs/idefics3.json", "vllm/template_vlm2vec.jinja")
"""Templates that go through the content's parts, and would go through the letters of a string."""
REFUSING = ("llama.cpp/fireworks-ai-llama-3-firefunction-v2.jinja",)
"""Templates that need variables of their own."""
OTHER_NAMES = ("llama.cpp/fireworks-ai-llama-3-firefunction-v2.jinja", "mistral.rs/smollm3.jinja")
"""Templates that speak of tools, and read them under names of their own alone: transformers leaves tools out."""


@each_template
def test_prompts_are_those_of_transformers(name: str, tokenizer: Callable) -> None:
    rendered = 0
    for messages, keywords in CONVERSATIONS:
        theirs = messages
        if name in PARTS_ALONE:
            theirs = [message | {"content": [{"type": "text", "text": message["content"]}]} for message in messages]
        unread = [field for field in ("tools", "documents") if field not in TEMPLATES[name] or name in OTHER_NAMES]
        if keywords.keys() & unread:
            with pytest.raises(RequestError, match="has no place for them"):
                chat.render(tokenizer(name), messages, **keywords)
            continue
        options = {"add_generation_prompt": not keywords.get("continue_final_message")} | keywords
        try:
            expected = tokenizer(name).apply_chat_template(theirs, tokenize=False, **options)
        except Exception:
            with pytest.raises(RequestError, match="the chat template refuses these messages"):
                chat.render(tokenizer(name), messages, **keywords)
            continue
        assert chat.render(tokenizer(name), messages, **keywords) == expected
        assert chat.render(tokenizer(name), as_sent(messages), **keywords) == expected
        rendered += 1
    assert rendered >= 3 or name in REFUSING


@each_template
def test_content_in_parts(name: str, tokenizer: Callable) -> None:
    """Templates that read parts get them, as transformers passes them; others get one text."""
    parts = {"role": "user", "content": [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]}
    try:
        text = chat.render(tokenizer(name), [parts])
    except RequestError:
        with pytest.raises(RequestError):
            chat.render(tokenizer(name), [USER])
        return
    joined = {"role": "user", "content": "One.\nTwo."}
    plain = tokenizer(name).apply_chat_template([joined], tokenize=False, add_generation_prompt=True)
    listed = ""
    try:
        listed = tokenizer(name).apply_chat_template([parts], tokenize=False, add_generation_prompt=True)
    except Exception:
        assert text == plain
    assert text in (plain, listed)
    assert "'type': 'text'" not in text
    assert '"type": "text"' not in text
    assert "One." in text
    assert "Two." in text


FORMATS = {
    "llama.cpp/Qwen-Qwen2.5-7B-Instruct.jinja": ("hermes", None),
    "llama.cpp/Qwen-Qwen3-0.6B.jinja": ("hermes", "think_tags"),
    "llama.cpp/Qwen-QwQ-32B.jinja": ("hermes", "think_tags"),
    "llama.cpp/Qwen3-Coder.jinja": ("qwen3_coder", None),
    "llama.cpp/Qwen3.5-4B.jinja": ("qwen3_coder", "think_tags"),
    "llama.cpp/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16.jinja": ("qwen3_coder", "think_tags"),
    "llama.cpp/NousResearch-Hermes-3-Llama-3.1-8B-tool_use.jinja": ("hermes", None),
    "llama.cpp/ByteDance-Seed-OSS.jinja": ("seed_oss", "seed_oss"),
    "llama.cpp/GLM-4.6.jinja": ("glm45", "think_tags"),
    "llama.cpp/GLM-4.7-Flash.jinja": ("glm45", "think_tags"),
    "llama.cpp/Kimi-K2-Instruct.jinja": ("kimi_k2", None),
    "llama.cpp/Kimi-K2-Thinking.jinja": ("kimi_k2", "kimi_k2"),
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": ("deepseek_v3", "deepseek_r1"),
    "llama.cpp/deepseek-ai-DeepSeek-V3.1.jinja": ("deepseek_v31", "deepseek_v3"),
    "llama.cpp/meta-llama-Llama-3.1-8B-Instruct.jinja": ("llama3_json", None),
    "llama.cpp/meta-llama-Llama-3.2-3B-Instruct.jinja": ("llama3_json", None),
    "llama.cpp/mistralai-Mistral-Nemo-Instruct-2407.jinja": ("mistral", None),
    "llama.cpp/mistralai-Ministral-3-14B-Reasoning-2512.jinja": ("mistral", "mistral"),
    "llama.cpp/ibm-granite-granite-3.3-2B-Instruct.jinja": ("granite", "granite"),
    "llama.cpp/openai-gpt-oss-120b.jinja": ("openai", "openai_gptoss"),
    "llama.cpp/meetkai-functionary-medium-v3.1.jinja": (None, None),
    "llama.cpp/google-gemma-2-2b-it.jinja": (None, None),
    "llama.cpp/microsoft-Phi-3.5-mini-instruct.jinja": (None, None),
    "llama.cpp/deepseek-ai-DeepSeek-V3.2.jinja": ("deepseek_v32", "deepseek_v3"),
    "llama.cpp/LFM2-8B-A1B.jinja": ("lfm2", None),
    "vllm/tool_chat_template_deepseekv3.jinja": ("deepseek_v3", None),
    "vllm/tool_chat_template_granite_20b_fc.jinja": ("granite-20b-fc", None),
    "vllm/tool_chat_template_internlm2_tool.jinja": ("internlm", None),
    "vllm/tool_chat_template_llama3.2_pythonic.jinja": ("pythonic", None),
    "vllm/tool_chat_template_llama4_json.jinja": ("llama3_json", None),
    "vllm/tool_chat_template_llama4_pythonic.jinja": ("llama4_pythonic", None),
    "vllm/tool_chat_template_phi4_mini.jinja": ("phi4_mini_json", None),
    "vllm/tool_chat_template_toolace.jinja": ("pythonic", None),
}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_are_told_from_templates(name: str) -> None:
    assert AnswerFormat.choose(TEMPLATES[name]) == AnswerFormat(*FORMATS[name])


NOT_RENDERED = {
    "llama.cpp/deepseek-ai-DeepSeek-R1-Distill-Llama-8B.jinja": "leaves out calls",
    "llama.cpp/ibm-granite-granite-3.3-2B-Instruct.jinja": "leaves out calls",
    "mistral.rs/smollm3.jinja": "leaves out calls",
    "llama.cpp/LFM2-8B-A1B.jinja": "leaves out calls",
    "llama.cpp/LFM2.5-Instruct.jinja": "leaves out calls",
    "llama.cpp/MiroThinker.jinja": "has another form of tools",
    "llama.cpp/fireworks-ai-llama-3-firefunction-v2.jinja": "has another form of tools",
    "llama.cpp/Kimi-K2-Instruct.jinja": "does what the sandbox forbids",
    "llama.cpp/Kimi-K2-Thinking.jinja": "does what the sandbox forbids",
    "llama.cpp/llama-cpp-deepseek-r1.jinja": "cannot be rendered by transformers",
    "vllm/tool_chat_template_llama3.2_pythonic.jinja": "writes strings without quotes, which the models do not",
    "vllm/tool_chat_template_toolace.jinja": "writes strings without quotes, which the models do not",
    "vllm/tool_chat_template_phi4_mini.jinja": "writes calls in another form than it asks for",
}
ONE_CALL = (
    "llama.cpp/meta-llama", "llama.cpp/openai", "vllm/tool_chat_template_llama3.",
    "vllm/tool_chat_template_llama4_json",
)  # fmt: skip
STRINGS_ALONE = "vllm/tool_chat_template_llama4_pythonic.jinja"
"""Writes every argument as a string."""


@pytest.mark.parametrize("name", [name for name, text in TEMPLATES.items() if AnswerFormat.choose(text).tools])
def test_calls_come_back_from_their_templates(name: str, tokenizer: Callable) -> None:
    """What the template makes of an answer with calls is read as the same calls, whole and letter by letter."""
    if name in NOT_RENDERED:
        pytest.skip(f"this template {NOT_RENDERED[name]}")
    form = AnswerFormat.choose(TEMPLATES[name])
    calls = CALLS[1:] if name == STRINGS_ALONE else CALLS[: 1 if name.startswith(ONE_CALL) else 2]
    answer = {"role": "assistant", "content": "", "tool_calls": calls}
    offered = {"tools": TOOLS} if "tools" in TEMPLATES[name] else {}
    full = chat.render(tokenizer(name), as_sent([USER, answer]), add_generation_prompt=False, **offered)
    text = full[full.rindex(USER["content"]) + len(USER["content"]) :]
    expected = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    for pieces in ([text], text):
        # With what ends the user's turn and begins the answer's before it: content, or nothing.
        assert read(pieces, form.tools).parsed == expected
    prompt = chat.render(tokenizer(name), [USER], **offered)
    if full.startswith(prompt):
        exact = read([full[len(prompt) :]], form.tools, form.reasoning, prompt=prompt)
        assert exact.parsed == expected
        assert not any(value in exact.content for value in ("Nice", "Sun"))


def test_arguments_that_the_template_wants_as_text() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=Backend(BPE()))
    fast.chat_template = "{% for m in messages %}{{ m.role + m.tool_calls[0].function.arguments }}{% endfor %}"
    call = {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"b": 1,  "a": 2}'}}
    assert chat.render(fast, [{"role": "assistant", "tool_calls": [call]}]) == 'assistant{"b": 1,  "a": 2}'


def test_templates_that_know_nothing_but_parts() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=Backend(BPE()))
    fast.chat_template = "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
    assert chat.render(fast, [USER]) == "How is the weather?;"
    assert chat.render(fast, [USER], continue_final_message=False, add_generation_prompt=True) == "How is the weather?;"


def test_names_of_reasoning() -> None:
    fast = PreTrainedTokenizerFast(tokenizer_object=Backend(BPE()))
    fast.chat_template = "{{ messages[0].thinking }}|{{ messages[0]['reasoning'] }}"
    for name in ("reasoning", "reasoning_content"):
        assert chat.render(fast, [{"role": "assistant", "content": "x", name: "Hm."}]) == "Hm.|Hm."


def test_reasoning_effort(tokenizer: Callable) -> None:
    names = ("openai-gpt-oss-120b", "Qwen-Qwen3-0.6B", "microsoft-Phi-3.5-mini-instruct")
    oss, qwen, phi = (tokenizer(f"llama.cpp/{name}.jinja") for name in names)
    assert "Reasoning: low" in chat.render(oss, [USER], reasoning_effort="low")
    assert chat.render(qwen, [USER], reasoning_effort="none").endswith("<think>\n\n</think>\n\n")
    for model, effort in ((qwen, "high"), (phi, "none")):
        with pytest.raises(RequestError, match="has no such setting") as raised:
            chat.render(model, [USER], reasoning_effort=effort)
        assert raised.value.param == "reasoning_effort"


@pytest.mark.parametrize("name", sorted(chat.RESERVED))
def test_transformers_own_keywords_cannot_be_reached(name: str, tokenizer: Callable) -> None:
    with pytest.raises(RequestError, match=f"'{name}' is no variable"):
        chat.render(tokenizer("vllm/template_chatml.jinja"), [USER], **{name: "{{ 7 * 7 }}"})


def test_reserved_names_are_all_of_transformers(tokenizer: Callable) -> None:
    functions = (PreTrainedTokenizerFast.apply_chat_template, render_jinja_template)
    parameters = {name for function in functions for name in inspect.signature(function).parameters}
    own = {"kwargs", "tools", "documents", "add_generation_prompt", "continue_final_message"}
    assert parameters - own | {"messages"} == chat.RESERVED


@pytest.mark.parametrize(
    "name", ["tokenizer", "kwargs", "args", "variables", "apply", "role", "loop", "", "a b", "__class__"]
)
def test_any_other_name_is_a_variable(name: str, tokenizer: Callable) -> None:
    fast = tokenizer("vllm/template_chatml.jinja")
    assert chat.render(fast, [USER], **{name: 1}) == chat.render(fast, [USER])


def test_tools_of_unusual_schemas_are_rendered(tokenizer: Callable) -> None:
    odd = tool("odd", x={"$ref": "#/$defs/a"}, y=STRING)
    text = chat.render(tokenizer("llama.cpp/Qwen-Qwen3-0.6B.jinja"), [USER], tools=[odd])
    assert json.dumps(odd) in text
