"""What a client asks for becomes a Request, or a RequestError that says which part of it cannot be."""

import operator
import random
import time
import uuid
from collections.abc import Sequence

from jaxllm.cache import tokens_at_most
from jaxllm.config import SchedulerConfig
from jaxllm.core import ModelInfo, PoolingParams, PoolingRequest, Request
from jaxllm.engine.groups import OF_A_GROUP, Beams
from jaxllm.errors import ConfigError, RequestError
from jaxllm.sampling_params import MAX_STOP_TOKENS, SamplingParams


class Intake:
    """Makes requests for one model and one KV cache. Safe to call from any thread.

    seed: of the generator that gives a seed to each request that brings none.

    Raises ConfigError for a model with more end-of-text ids than the device watches for.
    """

    def __init__(self, info: ModelInfo, config: SchedulerConfig, seed: int):
        if len(info.eos_token_ids) > MAX_STOP_TOKENS:
            raise ConfigError(
                f"generation_config.json: eos_token_id holds {len(info.eos_token_ids)} ids, and at most "
                f"{MAX_STOP_TOKENS} can be watched for; keep those that end a turn"
            )
        self._info = info
        self._config = config
        self._seeds = random.Random(seed)

    def request(
        self,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        source: Sequence[int] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str = "",
        sample_index: int = 0,
    ) -> Request:
        """deadline: a time.monotonic() value. request_id: a fresh one if None. Raises RequestError.

        source, of an encoder-decoder alone: what its encoder reads, the decoder going on from `prompt`, which may be
        empty. Without it the encoder reads `prompt`.
        """
        token_ids, source_ids = self.prompts(prompt, source, params=params)
        self._check_tokens(params)
        self._check_logprobs("logprobs", params.logprobs)
        self._check_logprobs("prompt_logprobs", params.prompt_logprobs)
        stop_ids = self._stop_ids(params)
        allowed = params.allowed_token_ids
        if allowed is not None and params.min_tokens > 0 and set(allowed) <= set(stop_ids):
            raise RequestError(
                f"min_tokens={params.min_tokens}: allowed_token_ids leaves only tokens that end the answer; allow "
                "another, or set min_tokens=0",
                "min_tokens",
            )
        self._check_beams(params, len(stop_ids))
        return Request(
            request_id=_named(request_id),
            prompt=token_ids,
            params=params,
            stop_ids=stop_ids,
            max_total=self._max_total(len(token_ids), params),
            seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
            sample_index=sample_index,
            priority=self._priority(priority),
            arrival=time.monotonic(),
            deadline=deadline,
            cache_salt=cache_salt,
            source=source_ids,
        )

    def prompts(
        self,
        prompt: Sequence[int],
        source: Sequence[int] | None = None,
        *,
        params: SamplingParams | None = None,
        new_tokens: int = 1,
    ) -> tuple[list[int], list[int]]:
        """What the tokens to come follow, and what an encoder reads, as `request` takes them; shortened as params say.

        new_tokens: that there must be room for.
        """
        start, limit = self._info.decoder_start, self._info.max_model_len
        if start is None:
            if source is not None:
                raise RequestError(f"{self._info.name} has no encoder: send one prompt", "prompt")
            return self.token_ids(_truncated(prompt, params, limit), new_tokens), []
        limit = min(limit, self._config.max_num_batched_tokens)  # a source is read in one step
        read, begun = (prompt, list(start)) if source is None else (source, self._decoder_prompt(prompt))
        keep = None if params is None else params.truncate_prompt_tokens
        source_ids = _integers(read if keep is None else read[-min(keep, limit) if keep > 0 else -limit :])
        if not source_ids:
            raise RequestError("prompt is empty: the encoder needs at least one token to read", "prompt")
        self._check_vocabulary("prompt", source_ids)
        if len(source_ids) > limit:
            raise RequestError(
                f"prompt has {len(source_ids)} tokens, and the encoder reads {limit} at most: shorten it, or start the "
                "engine with a larger max_model_len and max_num_batched_tokens if the model allows it",
                "prompt",
            )
        return self.token_ids(begun, new_tokens), source_ids

    def _decoder_prompt(self, prompt: Sequence[int]) -> list[int]:
        """What the decoder goes on from, behind the token that it always begins with."""
        start, given = self._info.decoder_start, _integers(prompt)
        assert start
        return given if given[:1] == [start[0]] else [start[0], *given] if given else list(start)

    def pooling_request(
        self,
        prompt: Sequence[int],
        params: PoolingParams,
        *,
        token_types: Sequence[int] | None = None,
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> PoolingRequest:
        """deadline: a time.monotonic() value. request_id: a fresh one if None. Raises RequestError."""
        keep = params.truncate_prompt_tokens
        if keep is not None:
            keep = self._info.max_model_len if keep == -1 else keep
            prompt, token_types = prompt[:keep], None if token_types is None else token_types[:keep]
        token_ids = self.token_ids(prompt, new_tokens=0)
        return PoolingRequest(
            request_id=_named(request_id),
            prompt=token_ids,
            params=params,
            per_token=self._is_per_token(params),
            token_types=None if token_types is None else self._check_types(token_types, len(token_ids)),
            priority=self._priority(priority),
            arrival=time.monotonic(),
            deadline=deadline,
        )

    def _is_per_token(self, params: PoolingParams) -> bool:
        """Whether the request asks for numbers of each token. RequestError for what the model does not do."""
        pooling = self._info.pooling
        name = f"{self._info.name} ({self._info.architecture})"
        if pooling is None:
            raise RequestError(
                f"{name} generates text: ask for that, or start the engine with task='embed' to have its hidden states "
                "pooled",
                "model",
            )
        embeds = pooling.task == "embed"
        able = [kind for kind, made in (("embed", embeds), ("classify", not embeds)) if made and pooling.sequence]
        able += ["token_embed" if embeds else "token_classify"] * pooling.per_token
        task = params.task or pooling.task
        if task not in able:
            raise RequestError(
                f"task={task!r}: {name} is made for {' and '.join(able)}; ask for that, or take another model", "task"
            )
        if params.dimensions is not None:
            if not embeds:
                raise RequestError(f"dimensions={params.dimensions}: {name} yields no embeddings to cut", "dimensions")
            if params.dimensions > pooling.size or params.dimensions not in (
                pooling.dimensions or (params.dimensions,)
            ):
                sizes = ", ".join(map(str, pooling.dimensions)) or f"at most {pooling.size}"
                raise RequestError(
                    f"dimensions={params.dimensions}: embeddings of {name} can have {sizes}", "dimensions"
                )
        return task in ("token_embed", "token_classify")

    def _check_types(self, token_types: Sequence[int], length: int) -> list[int]:
        kinds = max(1, self._info.token_types)
        types = list(map(operator.index, token_types))
        if len(types) != length or min(types) < 0 or max(types) >= kinds:
            raise RequestError(
                f"token_types must hold a segment from 0 to {kinds - 1} for each of the prompt's {length} tokens",
                "token_types",
            )
        return types

    def token_ids(self, prompt: Sequence[int], new_tokens: int = 1) -> list[int]:
        """The prompt as plain integers, each of them a token, no more than leave room for `new_tokens`."""
        token_ids = _integers(prompt)
        if not token_ids:
            raise RequestError("prompt is empty: at least one token is needed", "prompt")
        self._check_vocabulary("prompt", token_ids)
        limit = self._info.max_model_len
        if len(token_ids) + new_tokens > limit:
            new = f", {new_tokens} of them new" if new_tokens else ""
            raise RequestError(
                f"prompt has {len(token_ids)} tokens, and the context holds {limit}{new}: "
                "shorten the prompt, or start the engine with a larger max_model_len if the model allows it",
                "prompt",
            )
        return token_ids

    def _check_vocabulary(self, name: str, token_ids: Sequence[int]) -> None:
        size = self._info.vocab_size
        if token_ids and (min(token_ids) < 0 or max(token_ids) >= size):
            outside = next(token for token in token_ids if not 0 <= token < size)
            raise RequestError(f"{name} holds {outside}, which is no token: ids go from 0 to {size - 1}", name)

    def _check_tokens(self, params: SamplingParams) -> None:
        if params.bad_words:
            raise RequestError("bad_words: text is the tokenizer's part; send bad_words_ids", "bad_words")
        if params.thinking_token_budget is not None and params.thinking_token_ids is None:
            raise RequestError(
                "thinking_token_budget: no tokens are known to start and end thinking; name them in thinking_token_ids",
                "thinking_token_budget",
            )
        self._check_vocabulary("logit_bias", tuple(params.logit_bias))
        self._check_vocabulary("allowed_token_ids", params.allowed_token_ids or ())
        self._check_vocabulary("thinking_token_ids", params.thinking_token_ids or ())
        for word in params.bad_words_ids:
            self._check_vocabulary("bad_words_ids", word)

    def _check_logprobs(self, name: str, count: int | None) -> None:
        if count is not None and count > self._info.max_logprobs:
            raise RequestError(
                f"{name}={count}: this engine reports at most {self._info.max_logprobs} per position; "
                "ask for fewer, or start it with a higher --max-logprobs",
                name,
            )

    def _check_beams(self, params: SamplingParams, num_stop_ids: int) -> None:
        if not params.use_beam_search:
            return
        needed = Beams.candidates(params.num_samples, num_stop_ids)
        if needed > self._info.max_logprobs:
            raise RequestError(
                f"use_beam_search: {params.num_samples} beams and {num_stop_ids} ids that end them take the {needed} "
                f"most likely tokens of each step, and this engine reports {self._info.max_logprobs}: search with "
                "fewer beams, or start it with a higher --max-logprobs",
                "best_of" if params.best_of is not None else "n",
            )

    def _priority(self, priority: int) -> int:
        if priority and self._config.policy != "priority":
            raise RequestError(
                f"priority={priority}: this engine runs requests in the order of their arrival; leave it out, or start "
                "the engine with --scheduling-policy priority",
                "priority",
            )
        return priority

    def _stop_ids(self, params: SamplingParams) -> tuple[int, ...]:
        self._check_vocabulary("stop_token_ids", params.stop_token_ids)
        eos = () if params.ignore_eos else self._info.eos_token_ids
        stop_ids = tuple(dict.fromkeys((*eos, *params.stop_token_ids)))
        if len(stop_ids) > MAX_STOP_TOKENS:
            raise RequestError(
                f"stop_token_ids: {len(stop_ids)} different ids with the model's own {len(eos)} end-of-text ids, "
                f"and at most {MAX_STOP_TOKENS} can be watched for; name fewer",
                "stop_token_ids",
            )
        return stop_ids

    def _max_total(self, num_prompt: int, params: SamplingParams) -> int:
        """Prompt and output tokens at most; RequestError if the whole KV cache could not hold them."""
        limit = self._info.max_model_len
        max_total = limit if params.max_tokens is None else min(limit, num_prompt + params.max_tokens)
        capacity = tokens_at_most(self._config)
        if max_total > capacity:
            if params.max_tokens is not None or num_prompt >= capacity:
                raise RequestError(
                    f"prompt ({num_prompt} tokens) and output come to {max_total} tokens, and the whole KV cache holds "
                    f"{capacity}: ask for fewer tokens, or start the engine with more KV cache",
                    "prompt" if num_prompt >= capacity else "max_tokens",
                )
            max_total = capacity
        if num_prompt + params.min_tokens > max_total:
            raise RequestError(
                f"min_tokens={params.min_tokens}: there is room for {max_total - num_prompt} tokens behind a prompt of "
                f"{num_prompt}; ask for fewer, or shorten the prompt",
                "min_tokens",
            )
        return max_total


def _named(request_id: str | None) -> str:
    """The id, or a fresh one."""
    if request_id is None:
        return uuid.uuid4().hex
    if OF_A_GROUP in request_id:
        raise RequestError(
            f"request_id={request_id!r}: must not hold {OF_A_GROUP!r}, which tells samples apart; choose another",
            "request_id",
        )
    return request_id


def _integers(prompt: Sequence[int]) -> list[int]:
    try:
        return list(map(operator.index, prompt))
    except TypeError as error:
        raise RequestError(f"prompt must hold token ids, which are integers ({error})", "prompt") from error


def _truncated(prompt: Sequence[int], params: SamplingParams | None, context: int) -> Sequence[int]:
    """The last tokens of the prompt, as many as truncate_prompt_tokens says."""
    keep = None if params is None else params.truncate_prompt_tokens
    if params is None or keep is None:
        return prompt
    if keep == -1:  # what leaves room for the output, which may itself be cut short by the context
        keep = context - min(params.max_tokens or 1, context // 2)
    return prompt[-keep:]
