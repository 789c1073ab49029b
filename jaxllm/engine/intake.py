"""What a client asks for becomes a Request, or a RequestError that says which part of it cannot be."""

import operator
import random
import time
import uuid
from collections.abc import Sequence

from jaxllm.config import SchedulerConfig
from jaxllm.core import MAX_STOP_TOKENS, ModelInfo, Request, SamplingParams
from jaxllm.errors import ConfigError, RequestError


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
        request_id: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        cache_salt: str = "",
        sample_index: int = 0,
    ) -> Request:
        """deadline: a time.monotonic() value. request_id: a fresh one if None. Raises RequestError."""
        token_ids = self.token_ids(_truncated(prompt, params, self._info.max_model_len))
        self._check_tokens(params)
        self._check_logprobs("logprobs", params.logprobs)
        self._check_logprobs("prompt_logprobs", params.prompt_logprobs)
        return Request(
            request_id=uuid.uuid4().hex if request_id is None else request_id,
            prompt=token_ids,
            params=params,
            stop_ids=self._stop_ids(params),
            max_total=self._max_total(len(token_ids), params),
            seed=self._seeds.getrandbits(63) if params.seed is None else params.seed,
            sample_index=sample_index,
            priority=priority,
            arrival=time.monotonic(),
            deadline=deadline,
            cache_salt=cache_salt,
        )

    def token_ids(self, prompt: Sequence[int], new_tokens: int = 1) -> list[int]:
        """The prompt as plain integers, each of them a token, no more than leave room for `new_tokens`."""
        try:
            token_ids = list(map(operator.index, prompt))
        except TypeError as error:
            raise RequestError(f"prompt must hold token ids, which are integers ({error})", "prompt") from error
        if not token_ids:
            raise RequestError("prompt is empty: at least one token is needed to go on from", "prompt")
        self._check_vocabulary("prompt", token_ids)
        limit = self._info.max_model_len
        if len(token_ids) + new_tokens > limit:
            raise RequestError(
                f"prompt has {len(token_ids)} tokens, and the context holds {limit}, {new_tokens} of them new: "
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
        # The last token's keys and values are never computed; page 0 is the padding sink.
        capacity = (self._config.num_pages - 1) * self._config.page_size + 1
        if max_total <= capacity:
            return max_total
        if params.max_tokens is None and num_prompt < capacity:
            return capacity
        raise RequestError(
            f"prompt ({num_prompt} tokens) and output come to {max_total} tokens, and the whole KV cache holds "
            f"{capacity}: ask for fewer tokens, or start the engine with more KV cache",
            "prompt" if num_prompt >= capacity else "max_tokens",
        )


def _truncated(prompt: Sequence[int], params: SamplingParams, context: int) -> Sequence[int]:
    """The last tokens of the prompt, as many as truncate_prompt_tokens says."""
    keep = params.truncate_prompt_tokens
    if keep is None:
        return prompt
    if keep == -1:  # what leaves room for the output
        keep = max(1, context - (params.max_tokens or 1))
    return prompt[-keep:]
