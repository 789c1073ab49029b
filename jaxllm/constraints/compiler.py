"""StructuredOutputs become constraints: tried out, compiled and kept for the next request of the same form."""

import dataclasses
import json
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence

from llguidance import LLMatcher, LLTokenizer

from jaxllm.constraints import json_schema, structural_tag
from jaxllm.constraints.constraint import Grammar
from jaxllm.constraints.thinking import AfterThinking, ThinkingMarks
from jaxllm.constraints.trial import Trials, compile_grammar
from jaxllm.constraints.vocabulary import TokenTable, Vocabulary
from jaxllm.core import Constraint
from jaxllm.errors import RequestError
from jaxllm.structured_outputs import StructuredOutputs

MAX_CACHED = 128
MAX_CACHED_SIZE = 16 << 20
"""Compiled forms that are kept at most: how many, and the characters of their specifications."""

SPREAD = 32
"""Matchers of one form at most, beyond which those at work at the same time wait for each other."""


@dataclasses.dataclass
class _Form:
    """A form's grammar, and its matchers with the constraints that are copies of each.

    Copies of a matcher share what it finds out about its texts, behind a lock that is held while a mask is filled. So
    the form is compiled again where every matcher has a copy at work, which takes a thousandth of a second, as a rule.
    """

    grammar: str
    matchers: list[tuple[LLMatcher, "weakref.WeakSet[Grammar]"]]

    def least_used(self) -> tuple[LLMatcher, "weakref.WeakSet[Grammar]"]:
        return min(self.matchers, key=lambda pair: len(pair[1]))


class Compiler:
    """Makes constraints for one model. Any thread may use it, and none of those that wait for the device should.

    load: gives the vocabulary when it is first needed. vocab_size: tokens of the model, whose logits may be more than
    the tokenizer's tokens. eos_token_ids: the model's end-of-text ids.
    """

    def __init__(self, load: Callable[[], Vocabulary], vocab_size: int, eos_token_ids: Sequence[int]):
        self._load = load
        self._vocab_size = vocab_size
        self._eos_token_ids = tuple(token for token in eos_token_ids if token < vocab_size)
        self._lock = threading.Lock()
        self._loaded: tuple[TokenTable, LLTokenizer, Trials] | None = None
        self._cache: OrderedDict[StructuredOutputs, _Form] = OrderedDict()
        self._cached_size = 0
        self._cache_lock = threading.Lock()
        self._marks: tuple[tuple[tuple[str, ...], tuple[str, ...]], ThinkingMarks] | None = None

    def warm(self) -> None:
        """Do what the first request would wait for. Raises RequestError."""
        _, _, trials = self._parts()
        trials.run("start: /(?s:.*)/")  # whatever the tokens can spell

    def compile(self, form: StructuredOutputs, stop_ids: Sequence[int]) -> Constraint:
        """The beginning of an answer. stop_ids: what ends the request. Raises RequestError."""
        table, _, _ = self._parts()
        bare = dataclasses.replace(form, thinking_ends=(), thinking_starts=())
        stops = tuple(token for token in stop_ids if token < self._vocab_size)
        matcher, copies = self._matcher(bare)
        grammar = Grammar(matcher.deep_copy(), table.eos_token_id, self._eos_token_ids, stops)
        copies.add(grammar)
        if not form.thinking_ends:
            return grammar
        return AfterThinking(grammar, self._thinking_marks(table, form.thinking_starts, form.thinking_ends))

    def close(self) -> None:
        """End the processes that it has started."""
        with self._lock:
            if self._loaded is not None:
                self._loaded[2].close()
                self._loaded = None

    def _parts(self) -> tuple[TokenTable, LLTokenizer, Trials]:
        with self._lock:
            if self._loaded is None:
                try:
                    table = TokenTable.read(self._load(), self._vocab_size, self._eos_token_ids)
                    self._loaded = table, table.build(), Trials(table)
                except Exception as error:  # whatever a tokenizer of another make may raise
                    raise RequestError(
                        "structured_outputs: what this model's tokens spell cannot be told from its tokenizer "
                        f"({error}): ask without them",
                        "structured_outputs",
                    ) from error
            return self._loaded

    def _thinking_marks(self, table: TokenTable, starts: tuple[str, ...], ends: tuple[str, ...]) -> ThinkingMarks:
        """Those of a chat's model are the same each time; others are made anew."""
        with self._cache_lock:
            if self._marks is None or self._marks[0] != (starts, ends):
                self._marks = (starts, ends), ThinkingMarks(table, starts, ends)
            return self._marks[1]

    def _matcher(self, form: StructuredOutputs) -> tuple[LLMatcher, "weakref.WeakSet[Grammar]"]:
        """One of the form's matchers, to be copied, and its copies."""
        with self._cache_lock:
            if (known := self._cache.get(form)) is not None:
                self._cache.move_to_end(form)
                idlest = known.least_used()
                if not idlest[1] or len(known.matchers) >= SPREAD:
                    return idlest
        table, tokenizer, trials = self._parts()
        if known is None:
            known = _Form(grammar_of(form, table.literal), [])
            trials.run(known.grammar)
        made = compile_grammar(tokenizer, known.grammar), weakref.WeakSet[Grammar]()
        with self._cache_lock:
            if form not in self._cache:  # it is new, or was given up meanwhile
                self._cache[form] = known
                self._cached_size += form.size * len(known.matchers)
            known = self._cache[form]
            known.matchers.append(made)
            self._cached_size += form.size
            while len(self._cache) > MAX_CACHED or self._cached_size > MAX_CACHED_SIZE:
                oldest, compiled = self._cache.popitem(last=False)
                self._cached_size -= oldest.size * len(compiled.matchers)
        return made


def grammar_of(form: StructuredOutputs, literal: structural_tag.Literal) -> str:
    """The same in llguidance's own words. Raises RequestError."""
    match form:
        case StructuredOutputs(json=str(schema)):
            return _of_json(schema, form)
        case StructuredOutputs(json_object=True):
            return _of_json('{"type":"object"}', form)
        case StructuredOutputs(regex=str(pattern)):
            return LLMatcher.grammar_from_regex(pattern)
        case StructuredOutputs(choice=tuple(texts)):
            return "start: " + " | ".join(json.dumps(text, ensure_ascii=False) for text in texts)
        case StructuredOutputs(grammar=str(grammar)):
            return LLMatcher.grammar_from_lark(grammar)
        case StructuredOutputs(structural_tag=str(tag)):
            return structural_tag.to_grammar(tag, literal)
    raise AssertionError(form)


def _of_json(schema: str, form: StructuredOutputs) -> str:
    prepared = json_schema.prepare(
        schema,
        whitespace_pattern=form.whitespace_pattern,
        disable_any_whitespace=form.disable_any_whitespace,
        disable_additional_properties=form.disable_additional_properties,
    )
    return json.dumps({"grammars": [{"json_schema": prepared}]}, ensure_ascii=False)
