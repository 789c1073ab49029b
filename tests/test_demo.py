"""The model that the package holds: it reads as English, ends its turns, and is quick enough to watch on two cores."""

import re
import time
from collections.abc import Iterator

import pytest
from safetensors import safe_open

from jaxllm import LLM, SamplingParams, weights

COMMON = frozenset(re.findall(r"\w+", """
    the of and to a in that it is was i he for you with on as be at by this had not are but from or have an they which
    one were her all she there would their we him been has when who no more if out so what up said about who into them
    can only time do now some my his me over then such great before men man old could its two
"""))  # fmt: skip


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM("demo", max_num_seqs=1, max_num_batched_tokens=64, max_model_len=512) as llm:
        yield llm


def test_its_weights_are_bfloat16() -> None:
    with safe_open(weights.resolve_model_path("demo") / "model.safetensors", "numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118 (no mapping)


def test_its_greedy_text_reads_as_english(llm: LLM) -> None:
    """Most English is made of some hundred words; every word is spelt with letters."""
    prompts = ["Once upon a time", "The captain said", "In the morning the"]
    for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=100, ignore_eos=True)):
        words = re.findall(r"[^\s\W]+", output.outputs[0].text.lower())
        assert len(words) > 50
        assert all(word.isascii() for word in words)
        assert sum(word in COMMON for word in words) > 0.4 * len(words), output.outputs[0].text


def test_its_chat_template_ends_its_turns(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What does os.path.join do?"}]
    (output,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=200))
    assert output.prompt is not None
    assert output.prompt.endswith("<|assistant|>\n") or output.prompt.endswith("<|assistant|>")
    answer = output.outputs[0]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", llm.tokenizer.encode("<|end|>", False)[0])
    assert len(answer.text.split()) > 3
    assert "<|" not in answer.text


def test_one_stream_is_quick(llm: LLM) -> None:
    """A hundred tokens a second at least; the best of three, as others may use the machine."""
    params = SamplingParams(temperature=0, max_tokens=128, ignore_eos=True)
    rates = []
    for _ in range(3):
        start = time.perf_counter()
        llm.generate("It was a dark night", params, use_tqdm=False)
        rates.append(128 / (time.perf_counter() - start))
    assert max(rates) > 100, rates
