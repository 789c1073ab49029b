"""What the requests hold of every cache group, as one: the scheduler knows of no group.

Layers of one kind and window form a group with pages of its own. All groups together admit a request, with the
longest prefix that every one of them can serve, make room for its next tokens, and take back what it leaves.

A plan is submitted before the next one is made, and the device runs plans in that order. So a page that was filled,
or a state that was reached, by a plan may be shared or copied by the next; and a page that is let go may be taken at
once, as whoever takes it writes to it behind all that was submitted before.
"""

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence

from jaxllm.cache.groups import Hit, SourcePages, States, TokenPages
from jaxllm.cache.pages import PagePool
from jaxllm.cache.prefix import PrefixIndex
from jaxllm.config import SchedulerConfig
from jaxllm.core import PageCopy, Request
from jaxllm.errors import ConfigError, RequestError


def tokens_at_most(config: SchedulerConfig) -> int:
    """Tokens, prompt and output together, that one request may have for its whole context to be held."""
    whole = [group.num_pages - 1 for group in config.groups if group.kind == "tokens" and group.window is None]
    return min(whole) * config.page_size + 1 if whole else sys.maxsize  # the last token's are never computed


class CacheSpace:
    """All cache groups of an engine.

    Attributes:
        tokens, sources, states: the groups, by kind.
        copies: what the plan being made copies before it runs.
    """

    def __init__(self, config: SchedulerConfig):
        size = config.page_size
        places = list(enumerate(config.groups))
        self.tokens = [TokenPages(group, place, size) for place, group in places if group.kind == "tokens"]
        self.sources = [SourcePages(group, place, size) for place, group in places if group.kind == "source"]
        self.states = [States(group, place, size) for place, group in places if group.kind == "state"]
        self.copies: list[PageCopy] = []
        self._groups: list[TokenPages | SourcePages | States] = [*self.tokens, *self.sources, *self.states]
        assert [group.place for group in self._groups] == list(range(len(places))), "groups are not in their order"
        self._finders: list[TokenPages | States] = [*self.tokens, *self.states]
        self._page_size = size
        self._caching = config.enable_prefix_caching
        for states in self.states:
            needed = config.max_num_seqs + 1  # beside every live entry a snapshot to begin one from
            if states.pool.num_pages < needed:
                raise ConfigError(
                    f"num_pages={states.pool.num_pages + 1}: the states of max_num_seqs={config.max_num_seqs} requests "
                    f"need {needed + 1} entries, one of them the sink; lower max_num_seqs"
                )
        # Of the plan being made: what its copies hold on to, and the snapshots among their targets.
        self._held: list[tuple[PagePool, int]] = []
        self._snapshots: list[tuple[States, int, Request, int]] = []

    @property
    def free(self) -> int:
        """Further pages that every group of token pages can supply."""
        return min((group.pool.free for group in self.tokens), default=sys.maxsize)

    @property
    def size(self) -> tuple[int, int]:
        """Pages, and how many of them nobody holds, of the first group: that of whole contexts, if there is one."""
        return (self._groups[0].pool.num_pages, self._groups[0].pool.free) if self._groups else (0, 0)

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that could not be held even alone."""
        size = self._page_size
        for group in self.tokens:
            pages = group.least(request.max_total - 1)  # the last token's keys and values are never computed
            if pages > group.pool.num_pages:
                raise RequestError(
                    f"prompt and output of up to {request.max_total} tokens need {pages} pages of {size}, and the KV "
                    f"cache has {group.pool.num_pages}: ask for fewer tokens, or start the engine with more KV cache",
                    "max_tokens",
                )
        for source in self.sources:
            pages = source.needed(request)
            if pages > source.pool.num_pages:
                raise RequestError(
                    f"a source of {len(request.source)} tokens needs {pages} pages of {size}, and the KV cache has "
                    f"{source.pool.num_pages}: send a shorter one, or start the engine with more KV cache",
                    "prompt",
                )

    # --- admission ---

    def root(self, request: Request) -> bytes:
        """The key of the request's empty prefix: none but those of the same salt and source share what it computes,
        and, where only families share, none but those of its own."""
        salt = request.cache_salt
        if request.source:
            salt = f"{request.source}\0{salt}"
        if request.family is not None and not self._caching:
            salt = f"{request.family.name}\0{salt}"
        return PrefixIndex.root(salt)

    def may_read(self, request: Request) -> bool:
        """Prompt logprobs need the whole prompt computed."""
        return self._is_shared(request) and request.params.prompt_logprobs is None

    def _is_shared(self, request: Request) -> bool:
        """What it computes is kept for others to share."""
        return bool(self._finders) and (self._caching or request.family is not None)

    def to_read(self, request: Request) -> int:
        """Tokens of its source that an encoder must read once it is admitted."""
        known = all(sources.knows(request) for sources in self.sources)
        return 0 if known else len(request.source)

    def admit(self, request: Request, reserved: int, *, alone: bool) -> bool:
        """Gives a request its pages, cached ones where there are, and says where it begins (num_computed).

        False, with nothing given, if that left fewer than `reserved` pages of tokens, or a few more while it is not
        alone, lest the next pages of those that run preempt the newcomer at once.
        """
        for hit in self._hits(request):
            if all(group.fits(request, hit, reserved, alone) for group in self._groups):
                break
        else:
            return False
        for group, source in zip(self._groups, hit.sources, strict=True):
            if source:  # before pages are taken: it might be among them
                group.pool.share([source])
                self._held.append((group.pool, source))
        request.tables = [group.admit(request, hit) for group in self._groups]
        for place, (table, source) in enumerate(zip(request.tables, hit.sources, strict=True)):
            if source:  # into the page behind the shared ones, or into the only entry
                self.copies.append(PageCopy(place, source, table[min(hit.pages, len(table) - 1)]))
        request.num_computed = hit.pages * self._page_size + hit.tail
        request.num_indexed = hit.pages
        request.unshared = not self._is_shared(request)
        if not request.unshared:
            for sources in self.sources:
                sources.add(request)
        request.reach = self._reach(request)
        request.snapshots_due = [] if request.unshared else self._snapshots_worth_taking(request, hit)
        return True

    def _hits(self, request: Request) -> Iterator[Hit]:
        """What to try in turn: the longest prefix, then one that has no page copied, which takes a page less."""
        if not self.may_read(request):
            yield Hit(request.page_keys, 0, 0, 0, (0,) * len(self._groups))
            return
        longest = self._longest_prefix(request, partly=True)
        yield longest
        if any(longest.sources):
            yield self._longest_prefix(request, partly=False)

    def _longest_prefix(self, request: Request, partly: bool) -> Hit:
        """The longest prefix that every group can serve. Never the last token: it must be computed for the next one
        to be drawn. partly: with tokens behind the full pages."""
        size, usable = self._page_size, request.num_known - 1
        keys = _Keys(request, size)
        pages = matched = _agree(self.tokens, keys, usable // size)
        while True:
            pages = _agree(self._finders, keys, pages)
            start = pages * size
            tail = request.token_ids(start, min(usable, start + size)) if partly else []
            sources = [0] * len(self._groups)
            for group in self._finders:  # states come last: they have just this tail or a shorter one
                sources[group.place], found = self._tail(request, group, keys[pages], pages, tail)
                del tail[found:]
            if not tail:
                for tokens in self.tokens:
                    sources[tokens.place] = 0
            if pages == 0 or all(sources[states.place] for states in self.states):
                break
            pages -= 1
        return Hit(request.page_keys, pages, len(tail), matched, tuple(sources))

    def _tail(
        self, request: Request, group: TokenPages | States, prefix: bytes, pages: int, tokens: list[int]
    ) -> tuple[int, int]:
        """The page or state that has the most of `tokens` behind the first `pages`, and how many: of those that the
        index knows, and the leader's page, which is in no index before it is full or let go."""
        source, found = group.tail(prefix, tokens)
        leader = request.leader
        if isinstance(group, States) or leader is None or leader.unshared or not leader.tables:
            return source, found
        if len(leader.tables[group.place]) > pages:
            page = leader.tables[group.place][pages]
            common = min(len(leader.prompt), leader.num_computed) - pages * self._page_size
            if page and min(common, len(tokens)) > found:
                return page, min(common, len(tokens))
        return source, found

    def _snapshots_worth_taking(self, request: Request, hit: Hit) -> list[int]:
        """Positions, the next one last: where the known tokens' last full page ends, with one token behind it at
        least; and where the pages of others that begin alike end, of which there was no snapshot."""
        if not self.states:
            return []
        size = self._page_size
        places = {hit.matched * size, (request.num_known - 1) // size * size}
        return sorted((place for place in places if place > request.num_computed), reverse=True)

    # --- on the way ---

    def may_compute(self, request: Request, count: int, reserved: int) -> int:
        """How many of the next `count` tokens can be computed in the plan being made, `reserved` pages left free."""
        start, size = request.num_computed, self._page_size
        if request.snapshots_due:
            if request.snapshots_due[-1] == start:
                self._take_snapshot(request)
            if request.snapshots_due:
                count = min(count, request.snapshots_due[-1] - start)
        if start + count > request.reach:
            for group in self.tokens:
                table = request.tables[group.place]
                group.trim(table, start)
                count = min(count, size * (len(table) + max(0, group.pool.free - reserved)) - start)
        return count

    def grow(self, request: Request, end: int) -> list[tuple[int, int, int]]:
        """Gives a request pages for its tokens up to `end`, which are there, and takes those left behind.

        Returns what is new in its tables: (group, index, page).
        """
        new = []
        for group in self.tokens:
            table = request.tables[group.place]
            group.trim(table, request.num_computed)
            missing = -(-end // self._page_size) - len(table)
            if missing > 0:
                pages = group.pool.take(missing)
                new += [(group.place, len(table) + i, page) for i, page in enumerate(pages)]
                table += pages
        request.reach = self._reach(request)
        return new

    def trim(self, request: Request) -> None:
        """Takes back the pages that no token to come sees."""
        for group in self.tokens:
            group.trim(request.tables[group.place], request.num_computed)

    def _reach(self, request: Request) -> int:
        """Positions that have pages in every group."""
        lengths = (len(request.tables[group.place]) for group in self.tokens)
        return min((self._page_size * length for length in lengths), default=request.max_total)

    def _take_snapshot(self, request: Request) -> None:
        """Has the live entry copied, before the plan being made changes it, if an entry is to spare."""
        position = request.snapshots_due.pop()
        for states in self.states:
            if states.pool.free and not request.unshared:
                (entry,) = states.pool.take(1)
                self.copies.append(PageCopy(states.place, request.tables[states.place][0], entry))
                self._snapshots.append((states, entry, request, position))

    def end_plan(self) -> list[PageCopy]:
        """The plan's copies, which from here on precede whatever could overwrite their sources."""
        for pool, source in self._held:
            pool.release([source])
        for states, entry, request, position in self._snapshots:
            self._index_state(states, entry, request, position)
            states.pool.release([entry])
        copies, self.copies, self._held, self._snapshots = self.copies, [], [], []
        return copies

    # --- what stays ---

    def index(self, request: Request) -> None:
        """Tells the prefix index of the pages that are full of known tokens whose computation is planned.

        Planned is enough: the plan is submitted before the next one is made, so whoever shares the page then, or
        copies it, reads it in a later step. This plan's own admissions and copies are over.
        """
        size = self._page_size
        full = min(request.num_computed, request.num_known) // size
        if request.unshared or not self.tokens:
            return
        keys = _Keys(request, size)
        while request.num_indexed < full:
            number = request.num_indexed
            tokens = request.token_ids(number * size, (number + 1) * size)
            for group in self.tokens:
                group.add(request.tables[group.place][number], keys[number], tokens, keys[number + 1])
            request.num_indexed += 1

    def _index_tail(self, request: Request) -> None:
        """Tells of the page that will not become full, as its holder lets go of it.

        A row of this request may still be in flight, but it writes behind the tokens that are told of.
        """
        computed = min(request.num_computed, request.num_known)
        full = computed // self._page_size
        if not request.unshared and request.num_indexed == full and computed > full * self._page_size:
            tokens = request.token_ids(full * self._page_size, computed)
            for group in self.tokens:
                group.add(request.tables[group.place][full], request.page_keys[full], tokens, None)

    def _index_state(self, states: States, entry: int, request: Request, position: int) -> None:
        pages = position // self._page_size
        tokens = request.token_ids(pages * self._page_size, position)
        states.add(entry, _Keys(request, self._page_size)[pages], tokens)

    def release(self, request: Request) -> None:
        """Takes everything back from a request; what it computed stays in the prefix cache.

        Its state stays where the host knows the tokens before it: all that was submitted is then computed, and
        nothing behind it. (A row whose tokens are in flight may have met its end, and its state stands somewhere
        before num_computed.)
        """
        self.index(request)
        self._index_tail(request)
        if not request.unshared and 0 < request.num_computed <= request.num_known:
            for states in self.states:
                self._index_state(states, request.tables[states.place][0], request, request.num_computed)
        for group, table in zip(self._groups, request.tables, strict=True):
            group.release(table)
        request.tables = []  # not cleared: rows of submitted steps share the old lists

    def flush(self, running: Iterable[Request]) -> int:
        """Forgets every cached prefix; returns how many pages and entries held nothing else."""
        for request in running:
            request.unshared = True  # what was computed before, and what rests on it, is not to be shared after
        for group in self._finders:
            group.index.clear()
        freed = sum(group.pool.forget() for group in self._finders)
        return freed + sum(sources.flush() for sources in self.sources)


class _Keys:
    """The prefix index's keys of a request, computed as they are needed: [n] is that of its first n pages."""

    def __init__(self, request: Request, page_size: int):
        self._request = request
        self._page_size = page_size

    def __getitem__(self, pages: int) -> bytes:
        keys, size = self._request.page_keys, self._page_size
        for number in range(len(keys) - 1, pages):
            tokens = self._request.token_ids(number * size, (number + 1) * size)
            keys.append(PrefixIndex.key(keys[number], tokens))
        return keys[pages]


def _agree(groups: Sequence[TokenPages | States], keys: _Keys, pages: int) -> int:
    """The most full pages, at most `pages`, behind which each of these groups can go on."""
    agreed = 0
    for group in itertools.cycle(groups):
        reached = group.reach(keys, pages)
        agreed = agreed + 1 if reached == pages else 1
        pages = reached
        if agreed == len(groups):
            break
    return pages
