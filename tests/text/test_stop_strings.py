"""Stop strings against the obvious search through the whole text."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.server.text.stop_strings import StopStrings

few_letters = st.text("ab", max_size=40)
stops = st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4)


def chunks(text: str, cuts: list[int]) -> list[str]:
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(places)]


def search(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Where the first complete stop string ends, and which it is (the longer of two that end together)."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return end, max(complete, key=len)
    return None


@given(few_letters, stops, st.lists(st.integers(0, 40), max_size=8), st.booleans())
def test_any_chunking_equals_a_search_of_the_whole(text: str, stops: list[str], cuts: list[int], keep: bool) -> None:
    matcher, released, met = StopStrings(stops, keep), "", None
    for chunk in chunks(text, cuts):
        piece, met = matcher.push(chunk)
        released += piece
        if met is not None:
            break
    else:
        released += matcher.flush()
    found = search(text, stops)
    if found is None:
        assert (released, met) == (text, None)
    else:
        end, stop = found
        assert met == stop
        assert released == text[: end if keep else end - len(stop)]


@given(few_letters, stops)
def test_only_the_beginning_of_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    matcher, released = StopStrings(stops), ""
    for end, character in enumerate(text, start=1):
        piece, met = matcher.push(character)
        if met is not None:
            return
        released += piece
        held = text[len(released) : end]
        beginnings = [stop[:n] for stop in stops for n in range(len(stop)) if text[:end].endswith(stop[:n])]
        assert held == max(beginnings, key=len)


@given(few_letters, stops)
def test_a_kept_stop_string_holds_nothing_back(text: str, stops: list[str]) -> None:
    matcher = StopStrings(stops, keep=True)
    for character in text:
        piece, met = matcher.push(character)
        assert piece == character
        if met is not None:
            return


@given(st.text("ab", max_size=12), st.text("ab", max_size=12), stops)
def test_unarmed_text_does_not_stop_but_may_begin_a_stop(before: str, after: str, stops: list[str]) -> None:
    matcher = StopStrings(stops, keep=True)
    assert matcher.push(before, armed=False) == (before, None)
    piece, met = matcher.push(after)
    text = before + after
    ends = [end for end in range(len(before) + 1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops)]
    if ends:
        assert piece == text[len(before) : ends[0]]
        assert text[: ends[0]].endswith(str(met))
    else:
        assert (piece, met) == (after, None)


def test_a_long_stop_string_costs_no_more_per_character() -> None:
    stop = "a" * 20_000 + "b"
    matcher = StopStrings([stop])
    released = "".join(matcher.push("a" * 100)[0] for _ in range(400))
    assert len(released) == 40_000 - 20_000
    assert matcher.push("b") == ("", stop)


@pytest.mark.parametrize("keep", [False, True])
def test_two_strings_that_end_together(keep: bool) -> None:
    assert StopStrings(["\n", "\n\n"], keep).push("one\n\ntwo") == ("one\n" if keep else "one", "\n")
    assert StopStrings(["end", "the end"], keep).push("at the end.") == ("at the end" if keep else "at ", "the end")
