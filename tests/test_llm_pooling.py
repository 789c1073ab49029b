"""LLM.embed, classify, score and encode over the real runner, against what transformers computed in float32.

The recorded segments are 0 where nothing says otherwise, so that whole texts are those of sequences of one segment.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pooled import Recorded, assert_close, checkpoint, sigmoid, softmax, unit

from jaxllm import LLM, SamplingParams
from jaxllm.errors import RequestError

SMALL = {"max_num_seqs": 4, "max_num_batched_tokens": 64}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def embedder(folders: Path) -> Iterator[tuple[LLM, Recorded]]:
    recorded = checkpoint("qwen3-embedding", folders / "embedder")
    with LLM(str(recorded.folder), **SMALL) as llm:
        yield llm, recorded


@pytest.fixture(scope="module")
def crosser(folders: Path) -> Iterator[tuple[LLM, Recorded]]:
    recorded = checkpoint("bert-pairs", folders / "crosser")
    with LLM(str(recorded.folder), **SMALL) as llm:
        yield llm, recorded


def test_embeddings_of_texts_and_ids_are_transformers(embedder: tuple[LLM, Recorded]) -> None:
    llm, recorded = embedder
    prompts = [*recorded.texts, *recorded.ids, {"prompt": recorded.texts[1]}]
    outputs = llm.embed(prompts, use_tqdm=False)
    hidden, ids = [*recorded.hidden, *recorded.hidden, recorded.hidden[1]], [*recorded.ids, *recorded.ids]
    for output, states, prompt in zip(outputs, hidden, prompts, strict=True):
        assert_close(output.outputs.embedding, unit(states[-1]))
        assert output.prompt == (
            prompt["prompt"] if isinstance(prompt, dict) else prompt if isinstance(prompt, str) else None
        )
    assert [output.prompt_token_ids for output in outputs[:-1]] == ids
    for output, states in zip(llm.embed(recorded.texts, use_activation=False), recorded.hidden, strict=True):
        assert_close(output.outputs.embedding, states[-1])
    for output, states in zip(llm.embed(recorded.ids, dimensions=7), recorded.hidden, strict=True):
        assert_close(output.outputs.embedding, unit(states[-1][:7]))


def test_numbers_of_tokens_are_transformers(embedder: tuple[LLM, Recorded]) -> None:
    llm, recorded = embedder
    outputs = llm.encode(recorded.texts, pooling="token_embed", use_activation=False, use_tqdm=False)
    for output, states in zip(outputs, recorded.hidden, strict=True):
        assert_close(output.outputs.data, states)
    for output, states in zip(llm.encode(recorded.texts), recorded.hidden, strict=True):
        assert_close(output.outputs.data, unit(states[-1]))


def test_scores_by_angle(embedder: tuple[LLM, Recorded]) -> None:
    llm, recorded = embedder
    vectors = [unit(states[-1]) for states in recorded.hidden]
    outputs = llm.score(recorded.texts[0], recorded.texts[1:], use_tqdm=False)
    assert_close([output.outputs.score for output in outputs], np.array([vectors[0] @ other for other in vectors[1:]]))
    assert [output.prompt for output in outputs] == recorded.texts[1:]
    assert [output.prompt_token_ids for output in outputs] == [recorded.ids[0] + ids for ids in recorded.ids[1:]]
    each = llm.score(recorded.ids, recorded.texts[::-1], use_tqdm=False)
    assert_close([output.outputs.score for output in each], np.array(list(map(np.dot, vectors, vectors[::-1]))))
    with pytest.raises(RequestError, match="cosine"):
        llm.score("w1", "w2", use_activation=False)


def test_a_text_is_cut_where_it_may_be(embedder: tuple[LLM, Recorded]) -> None:
    llm, recorded = embedder
    long = max(recorded.texts, key=len)
    cut, whole = llm.embed([long], truncate_prompt_tokens=5), llm.embed([" ".join(long.split()[:5])])
    assert cut[0].prompt_token_ids == whole[0].prompt_token_ids
    assert_close(cut[0].outputs.embedding, whole[0].outputs.embedding)
    too_long = " ".join(["w7"] * 65)
    with pytest.raises(RequestError, match="65 tokens") as caught:
        llm.embed([long, too_long])
    assert str(caught.value).startswith("input 1: ")
    assert len(llm.embed(too_long, truncate_prompt_tokens=-1)[0].prompt_token_ids) == 64


def test_pairs_are_scored_as_transformers_scores_them(crosser: tuple[LLM, Recorded]) -> None:
    llm, recorded = crosser
    which = [i for i, types in enumerate(recorded.types) if 0 in types]
    pairs = [recorded.pair(i) for i in which]
    queries, documents = zip(*pairs, strict=True)
    raw = [float(recorded.outputs[i][0]) for i in which]
    outputs = llm.score(queries, documents, use_tqdm=False)
    assert_close([output.outputs.score for output in outputs], sigmoid(np.array(raw)))
    assert [output.prompt_token_ids for output in outputs] == [recorded.ids[i] for i in which]
    plain = llm.score(queries, documents, use_activation=False, use_tqdm=False)
    assert_close([output.outputs.score for output in plain], np.array(raw))
    # One query for all is the same as that query each time.
    one = llm.score(queries[-1], documents, use_tqdm=False)
    each = llm.score([queries[-1]] * len(documents), documents, use_tqdm=False)
    assert [output.outputs.score for output in one] == [output.outputs.score for output in each]
    with pytest.raises(RequestError, match="give text"):
        llm.score([[5, 6]], ["w7"])
    with pytest.raises(RequestError, match="2 queries for 3"):
        llm.score(["w5", "w6"], ["w7"] * 3)


@pytest.mark.parametrize("case", ["roberta-classes", "xlm-roberta-classes"])
def test_classes_are_transformers(case: str, folders: Path) -> None:
    recorded = checkpoint(case, folders / case)
    with LLM(str(recorded.folder), **SMALL) as llm:
        alone = [i for i, types in enumerate(recorded.types) if 1 not in types]
        assert alone
        outputs = llm.classify([recorded.texts[i] for i in alone], use_tqdm=False)
        for i, output in zip(alone, outputs, strict=True):
            assert_close(output.outputs.probs, softmax(recorded.outputs[i]))
            assert output.outputs.labels == tuple(f"LABEL_{n}" for n in range(len(recorded.outputs[i])))
        for i, output in zip(alone, llm.classify([recorded.ids[i] for i in alone], use_activation=False), strict=True):
            assert_close(output.outputs.probs, recorded.outputs[i])
        with pytest.raises(RequestError, match="does not score pairs"):
            llm.score("w1", "w2")


def test_what_a_model_does_not_do_is_said(embedder: tuple[LLM, Recorded], crosser: tuple[LLM, Recorded]) -> None:
    with pytest.raises(RequestError, match="generates nothing: it is here to embed"):
        embedder[0].generate("w1", SamplingParams(max_tokens=1))
    with pytest.raises(RequestError, match="made for embed and token_embed; ask for that"):
        embedder[0].classify("w1")
    with pytest.raises(RequestError, match="made for classify"):
        crosser[0].embed("w1")
    with pytest.raises(RequestError, match="dimensions=37"):
        embedder[0].embed("w1", dimensions=37)


def test_more_prompts_than_may_wait_come_back_in_order(embedder: tuple[LLM, Recorded]) -> None:
    llm, recorded = embedder
    expected = [unit(states[-1]) for states in recorded.hidden]
    count = 10 * SMALL["max_num_seqs"]
    texts = list(itertools.islice(itertools.cycle(recorded.texts), count))
    for output, own in zip(llm.embed(texts, use_tqdm=False), itertools.cycle(expected), strict=False):
        assert_close(output.outputs.embedding, own)


def test_texts_are_read_in_lower_case_where_sentence_transformers_says_so(folders: Path) -> None:
    recorded = checkpoint("bert-3-heads", folders / "lower")
    (recorded.folder / "modules.json").write_text(
        '[{"type": "sentence_transformers.models.Transformer", "path": ""},'
        ' {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]'
    )
    (recorded.folder / "1_Pooling").mkdir()
    (recorded.folder / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    (recorded.folder / "sentence_bert_config.json").write_text('{"max_seq_length": 48, "do_lower_case": true}')
    with LLM(str(recorded.folder), **SMALL) as llm:
        assert llm.engine.info.max_model_len == 48
        shouted, quiet = llm.embed(["W5 w6 W7", "w5 w6 w7"], use_tqdm=False)
        assert shouted.prompt_token_ids == quiet.prompt_token_ids == [5, 6, 7]
        assert shouted.prompt == "W5 w6 W7"
        i = next(i for i, types in enumerate(recorded.types) if 1 not in types)
        assert_close(llm.embed(recorded.texts[i].upper())[0].outputs.embedding, recorded.hidden[i][0])
