"""Parameters said in text become token ids."""

import pytest
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from jaxllm.core import SamplingParams
from jaxllm.server.text import Tokenizer


def make_tokenizer(*special: str) -> Tokenizer:
    """One token per byte, but for "ab", and the special ones."""
    vocab = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Backend(BPE(vocab=vocab | {"ab": 256}, merges=[("a", "b")]))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = ByteLevelDecoder()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_bad_words_are_meant_with_a_space_before_and_without() -> None:
    tokenizer = make_tokenizer()
    a, c, space = (tokenizer.encode(text)[0] for text in "ac ")
    params = tokenizer.resolve(SamplingParams(bad_words=("ab", "cab", " a"), bad_words_ids=((1, 2), (256,)), seed=5))
    assert params.bad_words == ()
    assert params.bad_words_ids == ((1, 2), (256,), (space, 256), (c, 256), (space, c, 256), (space, a))
    assert params.seed == 5


def test_what_has_no_text_is_left_as_it_is() -> None:
    params = SamplingParams(bad_words_ids=((1, 2),), thinking_token_budget=3, thinking_token_ids=(4, 5))
    assert make_tokenizer().resolve(params) is params


@pytest.mark.parametrize("pair", [("<think>", "</think>"), ("[THINK]", "[/THINK]")])
def test_the_tokens_of_thinking_are_the_tokenizers(pair: tuple[str, str]) -> None:
    tokenizer = make_tokenizer("<other>", *pair)
    assert tokenizer.resolve(SamplingParams(thinking_token_budget=3)).thinking_token_ids == (258, 259)
    own = SamplingParams(thinking_token_budget=3, thinking_token_ids=(1, 2))
    assert tokenizer.resolve(own).thinking_token_ids == (1, 2)


def test_a_tokenizer_that_knows_no_thinking() -> None:
    assert make_tokenizer("<think>").resolve(SamplingParams(thinking_token_budget=3)).thinking_token_ids is None
