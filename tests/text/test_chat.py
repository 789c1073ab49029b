"""Chat templates: the checkpoint's, a file instead, an answer to go on with, and refusals."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxllm.errors import ConfigError, RequestError
from jaxllm.server.text import Tokenizer

Load = Callable[[str], Tokenizer]

QUESTION = {"role": "user", "content": "Hi"}


def test_the_checkpoints_template(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("qwen3-8b")
    assert tokenizer.has_chat_template
    text = tokenizer.render_chat([QUESTION])
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.apply_chat([QUESTION]) == tokenizer.encode(text, add_special_tokens=False)


def test_template_variables(load_tokenizer: Load) -> None:
    text = load_tokenizer("qwen3-8b").render_chat([QUESTION], enable_thinking=False)
    assert text.endswith("<think>\n\n</think>\n\n")


def test_the_last_message_stays_open(load_tokenizer: Load) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "Hello, I am"}]
    text = load_tokenizer("phi-3-mini").render_chat(messages, continue_final_message=True)
    assert text.endswith("<|assistant|>\nHello, I am")


def test_a_file_replaces_the_template(tokenizer_directory: Callable[[str], Path], tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    tokenizer = Tokenizer.load(tokenizer_directory("stories260K"), chat_template=str(template))
    assert tokenizer.render_chat([QUESTION]) == "[user]Hi"
    with pytest.raises(ConfigError, match=r"chat_template.*cannot be read"):
        Tokenizer.load(tokenizer_directory("stories260K"), chat_template=str(tmp_path / "absent.jinja"))


def test_a_template_beside_the_tokenizer(tokenizer_directory: Callable[[str], Path], tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer_directory("stories260K") / name, tmp_path / name)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}")
    assert Tokenizer.load(tmp_path).apply_chat([QUESTION])[0] == 1


@pytest.mark.parametrize(
    ("messages", "options", "why"),
    [
        ([], {}, "messages is empty"),
        ([{"content": "Hi"}], {}, r"messages\[0\] needs a 'role'"),
        ([QUESTION, "Hi"], {}, r"messages\[1\] needs a 'role'"),
        ([{"role": "user", "content": None}], {"continue_final_message": True}, "no text to go on from"),
        ([QUESTION], {"continue_final_message": True, "add_generation_prompt": True}, "exclude each other"),
    ],
)
def test_messages_that_make_no_prompt(messages: list, options: dict, why: str, load_tokenizer: Load) -> None:
    with pytest.raises(RequestError, match=why) as caught:
        load_tokenizer("qwen3-8b").render_chat(messages, **options)
    assert caught.value.param in ("messages", "continue_final_message")


def test_what_the_template_raises_is_told(tokenizer_directory: Callable[[str], Path], tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ raise_exception('roles must alternate') }}")
    tokenizer = Tokenizer.load(tokenizer_directory("stories260K"), chat_template=str(template))
    with pytest.raises(RequestError, match="roles must alternate"):
        tokenizer.render_chat([QUESTION])


def test_a_model_without_template(load_tokenizer: Load) -> None:
    assert not load_tokenizer("gpt2").has_chat_template
    with pytest.raises(RequestError, match=r"no chat template.*--chat-template"):
        load_tokenizer("gpt2").apply_chat([QUESTION])


def test_an_assistants_message_of_calls_alone(load_tokenizer: Load) -> None:
    """As OpenAI's clients hand it back: its content is None."""
    call = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    messages = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}]
    bare = [QUESTION, {"role": "assistant", "tool_calls": [call]}]
    tokenizer = load_tokenizer("qwen3-8b")
    assert '"name": "look"' in tokenizer.render_chat(messages)
    assert tokenizer.render_chat(messages) == tokenizer.render_chat(bare)


def test_a_template_that_only_names_tools_has_no_place_for_them(
    tokenizer_directory: Callable[[str], Path], tmp_path: Path
) -> None:
    tool = {"type": "function", "function": {"name": "look"}}
    for text, reads in (("{{ tools }}", True), ("{{ xml_tools }} tools", False), ("{% generation %}{{ tools }}", True)):
        template = tmp_path / "chat.jinja"
        template.write_text(text + ("{% endgeneration %}" if "generation" in text else ""))
        tokenizer = Tokenizer.load(tokenizer_directory("stories260K"), chat_template=str(template))
        if reads:
            assert "look" in tokenizer.render_chat([QUESTION], tools=[tool])
        else:
            with pytest.raises(RequestError, match="no place for them"):
                tokenizer.render_chat([QUESTION], tools=[tool])
