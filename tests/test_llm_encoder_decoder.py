"""Encoder-decoders through the whole engine, against what transformers continued greedily."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from jaxllm import LLM, RequestOutput, SamplingParams
from jaxllm.errors import ConfigError, RequestError

REFERENCE = Path(__file__).parent / "models" / "reference_encoder_decoder"
BART = "bart-uneven-bare-names"


def recorded(case: str) -> SimpleNamespace:
    with np.load(REFERENCE / case / "reference.npz") as values:
        borders, source_borders = (np.cumsum(values[name])[:-1] for name in ("lengths", "source_lengths"))
        sources = [source.tolist() for source in np.split(values["source_ids"], source_borders)]
        starts = [ids.tolist() for ids in np.split(values["ids"], borders)]
        return SimpleNamespace(
            sources=sources,
            prompts=[pair(source, start) for source, start in zip(sources, starts, strict=True)],
            logits=np.split(values["logits"], borders),
            greedy=values["greedy"].tolist(),
        )


def pair(encoder: Any, decoder: Any) -> dict[str, Any]:
    return {"encoder_prompt": encoder, "decoder_prompt": decoder}


def greedy(tokens: int, **more: Any) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, **more)


def drawn(outputs: list[RequestOutput]) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in outputs]


def load(case: str, **more: Any) -> LLM:
    config = {"max_model_len": 48, "block_size": 8, "max_num_seqs": 3, "max_num_batched_tokens": 32}
    return LLM(str(REFERENCE / case), **(config | {"decode_steps": (1, 4)} | more))


@pytest.fixture(scope="module")
def bart() -> Iterator[LLM]:
    with load(BART) as llm:
        yield llm


@pytest.mark.parametrize("case", ["t5-first", "t5-gated-untied-deeper-decoder", "bart-scaled", "marian-scaled"])
def test_continues_as_transformers_does(case: str) -> None:
    """Four requests over three slots: sources of many lengths, not all read in one step; decoder prompts in chunks
    beside decoding rows; one step and four steps at once. Twice, the second time with prefixes from the cache."""
    reference = recorded(case)
    with load(case) as llm:
        for _ in range(2):
            assert drawn(llm.generate(reference.prompts, greedy(8))) == reference.greedy
        for prompt, expected in zip(reference.prompts, reference.logits, strict=True):
            actual = llm.encode_logits(prompt)
            np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
        load_ = llm.engine.load()
        assert load_.pages_free == load_.pages_total


@pytest.mark.parametrize("kept", [True, False])
def test_a_preempted_request_goes_on_as_if_it_were_not(kept: bool) -> None:
    """Pages for one request and a half: others give way, and with them what was read of their sources, which is read
    again where nothing is kept of it or something else has taken its place."""
    reference = recorded("t5-first")
    with load("t5-first", num_gpu_blocks_override=7, enable_prefix_caching=kept) as llm:
        alone = [llm.generate(prompt, greedy(26))[0].outputs[0].token_ids for prompt in reference.prompts]
        assert llm.engine.load().preemptions == 0
        assert drawn(llm.generate(reference.prompts, greedy(26))) == alone
        assert llm.engine.load().preemptions > 0
    assert [tokens[:8] for tokens in alone] == reference.greedy


def test_prefixes_are_shared_behind_one_source_alone(bart: LLM) -> None:
    start = [2, *range(10, 30)]
    one, other = list(range(40, 52)), list(range(52, 64))
    fresh = [bart.generate(pair(source, start), greedy(6))[0] for source in (one, other)]
    assert [output.num_cached_tokens for output in fresh] == [0, 0]
    assert drawn(fresh)[0] != drawn(fresh)[1]
    for source, before in zip((one, other), fresh, strict=True):
        (again,) = bart.generate(pair(source, start), greedy(6))
        assert again.num_cached_tokens == len(start) - 1
        assert again.outputs[0].token_ids == before.outputs[0].token_ids


def test_many_at_once_are_as_alone(bart: LLM) -> None:
    random = np.random.default_rng(0)
    prompts = [
        pair(random.integers(3, 97, random.integers(1, 33)).tolist(), [2, *random.integers(3, 97, i % 5).tolist()])
        for i in range(12)
    ]
    together = drawn(bart.generate(prompts, greedy(9)))
    assert together == [drawn(bart.generate(prompt, greedy(9)))[0] for prompt in prompts]


def test_a_prompt_is_read_by_the_encoder_and_the_decoder_begins_as_its_makers_say(bart: LLM) -> None:
    source = recorded(BART).sources[0]
    plain, mapped, begun = bart.generate([source, {"prompt_token_ids": source}, pair(source, None)], greedy(6))
    assert drawn([plain]) == drawn([mapped]) == drawn([begun])
    assert plain.prompt_token_ids == [2, 0]  # its start token, and the one that config.json forces
    assert plain.encoder_prompt_token_ids == source
    assert (plain.prompt, plain.encoder_prompt) == (None, None)
    named, unnamed = bart.generate([pair(source, [2, 0, 5]), pair(source, [0, 5])], greedy(6))
    assert named.prompt_token_ids == unnamed.prompt_token_ids == [2, 0, 5]
    assert drawn([named]) == drawn([unnamed])


def test_generation_config_says_how_the_decoder_begins(tmp_path: Path) -> None:
    shutil.copytree(REFERENCE / BART, tmp_path / "model")
    generation = {"decoder_start_token_id": 7, "forced_bos_token_id": None, "eos_token_id": 9}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(generation))
    with load(str(tmp_path / "model")) as llm:
        assert llm.generate([11, 12], greedy(2))[0].prompt_token_ids == [7]
        assert llm.engine.info.eos_token_ids == (9,)
    config = json.loads((REFERENCE / "mbart" / "config.json").read_text()) | {"decoder_start_token_id": None}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"decoder_start_token_id=None: .* name one, .* in generation_config.json"):
        load(str(tmp_path / "bare"), load_format="dummy")


def test_samples_and_beams_go_on_from_the_source(bart: LLM) -> None:
    source = recorded(BART).sources[2]
    sampling = {"temperature": 1.0, "max_tokens": 6, "seed": 5, "ignore_eos": True, "detokenize": False}
    (several,) = bart.generate(source, SamplingParams(n=3, **sampling))
    (first,) = bart.generate(source, SamplingParams(**sampling))
    assert several.outputs[0].token_ids == first.outputs[0].token_ids
    assert len({tuple(output.token_ids) for output in several.outputs}) > 1
    (best,) = bart.generate(source, greedy(5, n=2, use_beam_search=True))
    scores = []
    for beam in best.outputs:
        logits = bart.encode_logits(pair(source, [2, 0, *beam.token_ids[:-1]]))[1:].astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        scores.append(logprobs[np.arange(5), beam.token_ids].sum())
        assert beam.cumulative_logprob == pytest.approx(scores[-1], abs=1e-3)
    assert scores == sorted(scores, reverse=True)


def test_what_an_encoder_decoder_refuses(bart: LLM) -> None:
    with pytest.raises(RequestError, match="prompt has 33 tokens, and the encoder reads 32 at most: shorten it"):
        bart.generate([list(range(5, 38))], greedy(1))
    with pytest.raises(RequestError, match="prompt is empty: the encoder needs at least one token"):
        bart.generate([[]], greedy(1))
    with pytest.raises(RequestError, match="prompt holds 97, which is no token"):
        bart.generate([[4, 97]], greedy(1))
    with pytest.raises(RequestError, match="prompt has 48 tokens, and the context holds 48, 1 of them new"):
        bart.generate(pair([4], [2] * 48), greedy(1))
    with pytest.raises(RequestError, match=r"prompt has the keys .* or, for an encoder-decoder"):
        bart.generate({"encoder_prompt": [4]}, greedy(1))
    assert bart.generate([list(range(5, 38))], greedy(1, truncate_prompt_tokens=-1))[0].encoder_prompt_token_ids == [
        *range(6, 38)
    ]


def test_a_decoder_alone_takes_no_pair() -> None:
    folder = REFERENCE.parent / "reference" / "llama-tied-3-heads"
    with (
        LLM(str(folder), max_model_len=16, block_size=8, max_num_seqs=1, max_num_batched_tokens=16) as llm,
        pytest.raises(RequestError, match="llama-tied-3-heads has no encoder: send one prompt"),
    ):
        llm.generate(pair([4], [5]), greedy(1))
