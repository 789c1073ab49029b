"""TextStream: any cutting of the tokens gives the text of the whole, stop strings included."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import TOKENIZERS

from jaxllm.core import SamplingParams
from jaxllm.server.text import TextStream, Tokenizer

Load = Callable[[str], Tokenizer]
Vectors = Callable[[str], list[tuple[str, list[int]]]]


def stream(tokenizer: Tokenizer, ids: list[int], cuts: list[int], **params: object) -> tuple[list[str], TextStream]:
    """The pieces of text when the tokens come in chunks cut at `cuts`, and the stream."""
    text = TextStream(tokenizer, SamplingParams(**params))  # type: ignore[arg-type]
    places = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    chunks = [ids[a:b] for a, b in pairwise(places)] or [[]]
    return [text.feed(chunk, final=i == len(chunks) - 1)[0] for i, chunk in enumerate(chunks)], text


def whole(tokenizer: Tokenizer, ids: list[int], skip_special_tokens: bool = True) -> str:
    """What the ids add to a text that precedes them."""
    anchor = tokenizer.encode("a", add_special_tokens=False)
    return tokenizer.decode(anchor + ids, skip_special_tokens)[len(tokenizer.decode(anchor)) :]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_token_by_token_equals_the_whole(name: str, load_tokenizer: Load, vectors: Vectors) -> None:
    tokenizer = load_tokenizer(name)
    for text, _ in vectors(name):
        ids = tokenizer.encode(text)
        for skip in (True, False):
            pieces, _ = stream(tokenizer, ids, list(range(len(ids))), skip_special_tokens=skip)
            assert "".join(pieces) == whole(tokenizer, ids, skip)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_any_text_in_any_chunks_equals_the_whole(name: str, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)

    @settings(max_examples=40, deadline=None)
    @given(st.text(max_size=30), st.lists(st.integers(0, 200), max_size=10))
    def check(text: str, cuts: list[int]) -> None:
        ids = tokenizer.encode(text)
        assert "".join(stream(tokenizer, ids, cuts)[0]) == whole(tokenizer, ids)

    check()


@pytest.mark.parametrize("name", ["gpt2", "falcon", "qwen3-8b", "deepseek-r1", "whisper-tiny"])
def test_any_ids_of_a_byte_level_tokenizer(name: str, load_tokenizer: Load) -> None:
    """Broken and unfinished characters included, and ids that stand for no token."""
    tokenizer = load_tokenizer(name)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.integers(0, tokenizer.vocab_size + 3) | st.integers(0, 260), max_size=30),
        st.lists(st.integers(0, 40), max_size=10),
        st.booleans(),
    )
    def check(ids: list[int], cuts: list[int], skip: bool) -> None:
        pieces, text = stream(tokenizer, ids, cuts, skip_special_tokens=skip)
        assert "".join(pieces) == whole(tokenizer, ids, skip)
        assert text.num_tokens == len(ids)

    check()


def test_a_character_waits_for_its_last_byte(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("stories260K")
    ids = tokenizer.encode("🙂", add_special_tokens=False)
    assert len(ids) == 5  # the space in front and four bytes
    assert stream(tokenizer, ids, list(range(5)))[0] == [" ", "", "", "", "🙂"]
    assert stream(tokenizer, ids[:4], list(range(4)))[0] == [" ", "", "", "\ufffd"]


@pytest.mark.parametrize("name", ["gpt2", "stories260K"])
@pytest.mark.parametrize("keep", [False, True])
def test_stop_strings_across_token_borders(name: str, keep: bool, load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer(name)

    @settings(max_examples=80, deadline=None)
    @given(
        st.text("ab \n🙂", max_size=30),
        st.lists(st.text("ab \n🙂", min_size=1, max_size=5), min_size=1, max_size=3),
        st.lists(st.integers(0, 60), max_size=10),
    )
    def check(text: str, stops: list[str], cuts: list[int]) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        expected = whole(tokenizer, ids)
        pieces, text_stream = stream(tokenizer, ids, cuts, stop=stops, include_stop_str_in_output=keep)
        got = "".join(pieces)
        ends = [(end, stop) for end in range(len(expected) + 1) for stop in stops if expected[:end].endswith(stop)]
        if not ends:
            assert (got, text_stream.stop, text_stream.num_tokens) == (expected, None, len(ids))
            return
        end = ends[0][0]
        stop = max((s for e, s in ends if e == end), key=len)
        assert text_stream.stop == stop
        assert got == expected[: end if keep else end - len(stop)]
        if not keep:
            assert not any(stop in got for stop in stops)
        # The token that completed the string is the last that counts.
        assert stop in whole(tokenizer, ids[: text_stream.num_tokens])
        assert not any(stop in whole(tokenizer, ids[: text_stream.num_tokens - 1]) for stop in stops)

    check()


def test_nothing_is_held_back_for_long(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("gpt2")
    text = TextStream(tokenizer, SamplingParams(stop=("\n\nUser:", "aaab")))
    released = total = 0
    for token in tokenizer.encode("aaaaaaaaaa\n\nUser said aaa aaa " * 20):
        piece, stop = text.feed([token])
        assert stop is None
        total += len(tokenizer.token_text(token))
        released += len(piece)
        assert total - released < len("\n\nUser:")


def test_tokens_after_a_stop_string_are_ignored(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("gpt2")
    text = TextStream(tokenizer, SamplingParams(stop=(".",)))
    assert text.feed(tokenizer.encode("One. Two.")) == ("One", ".")
    assert text.num_tokens == 2
    assert text.feed(tokenizer.encode(" Three"), final=True) == ("", ".")
    assert text.num_tokens == 2


def test_stop_strings_wait_for_min_tokens(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("gpt2")
    ids = tokenizer.encode("a.b.c.d")
    assert len(ids) == 7
    for min_tokens, expected in ((0, "a"), (2, "a"), (3, "a.b"), (5, "a.b.c"), (7, "a.b.c.d")):
        pieces, text = stream(tokenizer, ids, [2, 5], stop=(".",), min_tokens=min_tokens)
        assert "".join(pieces) == expected
        assert text.stop == (None if min_tokens == 7 else ".")


def test_a_stop_tokens_text_is_left_out(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("gpt2")
    ids = tokenizer.encode("Yes!")
    for keep, expected in ((False, "Yes"), (True, "Yes!")):
        params = SamplingParams(stop_token_ids=(ids[-1],), include_stop_str_in_output=keep)
        text = TextStream(tokenizer, params)
        assert text.feed(ids, final=True, stop_token=ids[-1])[0] == expected
        assert text.num_tokens == len(ids)


def test_held_text_comes_out_when_the_request_ends_otherwise(load_tokenizer: Load) -> None:
    tokenizer = load_tokenizer("gpt2")
    text = TextStream(tokenizer, SamplingParams(stop=("---",)))
    ids = tokenizer.encode("a --")
    assert text.feed(ids) == ("a ", None)
    assert text.feed([], final=True) == ("--", None)
