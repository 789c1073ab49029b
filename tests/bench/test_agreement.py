"""Two draws of the same prompts: the same, parted at a tie, or parted where nothing was tied."""

import pytest

from jaxllm.bench.agreement import LEADS, Drawn, compare


@pytest.mark.parametrize("dtype", LEADS)
def test_what_parts_at_a_tie_agrees_and_nothing_else_does(dtype: str) -> None:
    tie, lead = LEADS[dtype] / 2, LEADS[dtype] * 2
    references = [Drawn([5, 6, 7], [lead, tie, lead]), Drawn([5, 6, 7], [lead, lead, lead])]
    assert compare(references, references, dtype) == {
        "requests": 2, "output_tokens": 6, "same": 2, "ties": 0, "parted": [], "agree": True,
    }  # fmt: skip
    # Behind the tie they are other texts, which may differ anywhere.
    beside = [Drawn([5, 9, 8], [lead, lead, lead]), references[1]]
    row = compare(references, beside, dtype)
    assert (row["same"], row["ties"], row["agree"]) == (1, 1, True)
    parted = [references[0], Drawn([5, 6, 8], [tie, tie, tie])]
    row = compare(references, parted, dtype)
    assert (row["same"], row["ties"], row["agree"], row["parted"]) == (1, 0, False, [(1, 2, lead)])


def test_draws_of_different_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare([Drawn([5], [1.0])], [Drawn([5, 6], [1.0, 1.0])], "float32")
