"""How the cache's bytes are divided among its groups: pages of tokens, of sources, and entries of recurrent states."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxllm.config import CacheGroup
from jaxllm.errors import ConfigError


@dataclass(frozen=True)
class GroupPlan:
    """A cache group's share. page_bytes: of one page, or one entry of states, in all its layers; num_pages counts the
    sink."""

    group: CacheGroup
    page_bytes: int

    @property
    def num_pages(self) -> int:
        return self.group.num_pages

    @property
    def bytes(self) -> int:
        return self.num_pages * self.page_bytes

    def of(self, num_pages: int) -> "GroupPlan":
        return replace(self, group=replace(self.group, num_pages=num_pages))


@dataclass(frozen=True)
class Demand:
    """What running requests can use at most.

    Attributes:
        max_pages: of one request's context.
        prefixes: prefixes are kept for requests to come, so that snapshots of states are.
        bounded: so is the pool of whole contexts; else it takes all there is, for prefixes.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    decode_steps: int
    page_size: int
    max_pages: int
    prefixes: bool
    bounded: bool

    def least(self, group: CacheGroup) -> int:
        """Pages that one request needs to get on at all, the sink left out."""
        return least(group, self.max_pages, self.page_size)

    def state_bytes(self, groups: Sequence[GroupPlan]) -> int:
        """Of all recurrent states that are of use."""
        entries = self.max_num_seqs + 1 + self.snapshots
        return sum(entries * plan.page_bytes for plan in groups if plan.group.kind == "state")

    @property
    def snapshots(self) -> int:
        """At most one for each live state; without prefixes one, as samples of one prompt share it in any case."""
        return self.max_num_seqs if self.prefixes else 1

    def most(self, group: CacheGroup) -> int | None:
        """Pages that are of use, the sink included; None: any number is."""
        contexts = self.max_num_seqs * self.max_pages + 1
        if group.window is None:
            return contexts if self.bounded or group.kind == "source" else None
        windows = self.max_num_seqs * (-(-(group.window - 1 + self.decode_steps) // self.page_size) + 1)
        # A prefix is of use only while the window behind its end is there: as many again are kept of those that ended.
        windows *= 1 + self.prefixes
        return min(contexts, windows + -(-self.max_num_batched_tokens // self.page_size) + 1)


def divide(groups: Sequence[GroupPlan], demand: Demand, budget: int, *, rounded: bool) -> tuple[GroupPlan, ...]:
    """Sizes of the groups within `budget` bytes.

    States come first, as no request runs without one. What is left is shared out so that all pages hold equally many
    tokens, as a request whose context is shorter than its window needs as many pages with a window as without; what a
    group has no use for goes to the others.

    rounded: down to sizes that a start with a little more or less memory comes to as well.
    """
    states, paged = [g for g in groups if g.group.kind == "state"], [g for g in groups if g.group.kind != "state"]
    states = [_entries(state, demand, budget, paged=bool(paged)) for state in states]
    left = max(0, budget - sum(state.bytes for state in states))
    return (*_level(paged, demand, left, rounded=rounded), *states)


def exactly(groups: Sequence[GroupPlan], demand: Demand, pages: int) -> tuple[GroupPlan, ...]:
    """Sizes for so many pages of whole contexts: no more than that of windows, and states as usual."""
    return tuple(
        group.of(demand.max_num_seqs + 1 + demand.snapshots)
        if group.group.kind == "state"
        else group.of(pages if group.group.window is None else min(pages, demand.most(group.group) or pages))
        for group in groups
    )


def least(group: CacheGroup, max_pages: int, page_size: int) -> int:
    """Pages that one request of max_pages needs to get on at all: with a window, what any token of it may see."""
    if group.kind == "state":
        return 1
    return max_pages if group.window is None else min(max_pages, -(-(group.window - 1) // page_size) + 1)


def _entries(state: GroupPlan, demand: Demand, budget: int, *, paged: bool) -> GroupPlan:
    """The sink, a live entry per request, and snapshots: in a quarter of the rest, or all of it if nobody wants it."""
    live = demand.max_num_seqs + 1
    rest = budget // state.page_bytes - live
    snapshots = demand.snapshots
    if snapshots > (share := rest // 4 if paged else rest):
        snapshots = 1 << max(1, share).bit_length() - 1
    if rest < snapshots:
        raise ConfigError(
            f"max_num_seqs={demand.max_num_seqs}: the recurrent states of so many requests, {state.page_bytes:,} bytes "
            f"each, need more than the {budget:,} bytes there are; lower it to {max(1, budget // state.page_bytes - 2)}"
        )
    return state.of(live + snapshots)


def _level(groups: Sequence[GroupPlan], demand: Demand, budget: int, *, rounded: bool) -> list[GroupPlan]:
    """The same number of pages for every group, except that none has more than are of use to it."""
    sizes: dict[CacheGroup, int] = {}
    ascending = sorted(groups, key=lambda plan: demand.most(plan.group) or float("inf"))
    for place, plan in enumerate(ascending):
        share = budget // sum(other.page_bytes for other in ascending[place:])
        share = _round(share) if rounded else share
        most = demand.most(plan.group)
        sizes[plan.group] = share if most is None else min(share, most)
        budget -= sizes[plan.group] * plan.page_bytes
    return [plan.of(sizes[plan.group]) for plan in groups]


def _round(pages: int) -> int:
    """Down to a multiple of 256, or of a power of two about an eighth of a small pool: a pool that differs a little
    from start to start would find nothing in the compilation cache."""
    unit = min(256, 1 << max(0, (pages // 8).bit_length() - 1))
    return pages // unit * unit
