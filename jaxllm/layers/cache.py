"""What a layer is given of the cache beside a Step: its pools, and where each row's share of them lies.

A layer returns its cache with new pools: `dataclasses.replace(cache, pools=...)`. Where it declared several
specifications it is given, and returns, a tuple of these; with a DenseStep it is given None.
"""

from dataclasses import dataclass

import jax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PagedCache:
    """Pages of keys and values, or of latents. T tokens, R rows, MP pages per row at most.

    Attributes:
        pools: each [pages, page, *what a token has], as the layer's PagedKV or LatentKV says; page 0 is the sink.
        page_table: [R, MP] int32 pages of each row in order; 0, the sink, where there is none any more or yet.
        write_index: [T] int32 where each token's share goes: page * page_size + offset; in page 0 for padding.
    """

    pools: tuple[jax.Array, ...]
    page_table: jax.Array
    write_index: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StateCache:
    """Recurrent states, one entry of each pool per row.

    No program clears an entry: a row whose first token of the step stands at position 0 starts from a zero state,
    whatever its entry holds.

    Attributes:
        pools: each [entries, *shape], as the layer's RecurrentState says.
        index: [R] int32 the row's entry; 0, the sink, for padding rows and rows that are done.
    """

    pools: tuple[jax.Array, ...]
    index: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossCache:
    """Keys and values of what an encoder read, written once per request. S source tokens, R rows.

    Attributes:
        pools: keys and values, each [pages, page, kv heads, head dim].
        page_table: [R, MPX] int32 pages of each row's source in order; 0, the sink, behind its end.
        kv_len: [R] int32 tokens of each row's source; 0 for padding.
        write_index: [S] int32 where the source's tokens go, in the step that encodes it; None in all others.
    """

    pools: tuple[jax.Array, ...]
    page_table: jax.Array
    kv_len: jax.Array
    write_index: jax.Array | None = None


Cache = PagedCache | StateCache | CrossCache
"""What one specification of a layer becomes."""

LayerCache = Cache | tuple[Cache, ...]
"""What a layer is given: one cache where it declared one specification, else a tuple of as many."""
