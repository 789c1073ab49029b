"""Attention of a step's ragged queries over paged keys and values, causal unless they are a source's."""

import jax
import jax.numpy as jnp

from pallas_kernels import choose


def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    causal: bool = True,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    sinks: jax.Array | None = None,
    position_bias: jax.Array | None = None,
    decode: bool = False,
) -> jax.Array:
    """Attends each row's queries to that row's pages, which already hold this step's keys and values.

    q: [T, H, D]; k_pages, v_pages: [P, page, KH, D], H a multiple of KH; page_table: [R, MP] int32;
    query_start: [R + 1] int32; kv_len: [R] int32. Row r's queries are q[query_start[r] : query_start[r + 1]];
    query i of it stands at position kv_len[r] - (query_start[r + 1] - i) and sees the positions up to its own,
    of these only the last `window` if given. Not causal, every query sees all of its row, which may then have fewer
    positions than queries: its keys are not the queries' own. Scores are scale * q.k, then
    soft_cap * tanh(scores / soft_cap) if given.
    alibi_slopes: [H], adds slope * (key position - query position) to them (Press et al. 2022).
    position_bias: [H, W + 1] float32, adds to them the number at min(query position - key position, W) (T5, Raffel et
    al. 2020).
    sinks: [H], one more logit of each head in the softmax's denominator, which has no value (gpt-oss).
    decode (static): T == R and row r is token r, so query_start is not read.

    Returns [T, H, D] in q.dtype; zeros for rows of kv_len 0 and for tokens behind query_start[R]. Only positions a
    query sees are read into its result: whatever else lies in the pools, NaN included, has no influence.
    """
    check(
        q, k_pages, v_pages, page_table, kv_len,
        window=window, alibi_slopes=alibi_slopes, sinks=sinks, position_bias=position_bias,
    )  # fmt: skip
    tokens, rows = q.shape[0], page_table.shape[0]
    if query_start.shape != (rows + 1,) or (decode and tokens != rows):
        raise ValueError(
            f"paged_attention: q {q.shape}, page_table {page_table.shape} and query_start {query_start.shape} disagree"
            " about the rows"
        )
    if not causal and any(x is not None for x in (window, alibi_slopes, position_bias)):
        raise ValueError("paged_attention: without causality there are no distances for windows, slopes or biases")
    if window is not None:  # no longer than any row: kernels add it to positions
        window = min(window, page_table.shape[1] * k_pages.shape[1])
    result: jax.Array = choose.run(
        "paged_attention",
        ("mosaic", "triton", "reference"),
        q,
        k_pages,
        v_pages,
        page_table,
        query_start,
        kv_len,
        scale=scale,
        causal=causal,
        window=window,
        soft_cap=soft_cap,
        alibi_slopes=None if alibi_slopes is None else jnp.asarray(alibi_slopes, jnp.float32),
        sinks=None if sinks is None else jnp.asarray(sinks, jnp.float32),
        position_bias=None if position_bias is None else jnp.asarray(position_bias, jnp.float32),
        decode=decode,
    )
    return result


def check(
    q: jax.Array | jax.ShapeDtypeStruct,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    kv_len: jax.Array,
    *,
    window: int | None,
    alibi_slopes: jax.Array | None,
    sinks: jax.Array | None,
    position_bias: jax.Array | None,
    operation: str = "paged_attention",
) -> None:
    """Raises ValueError, in an operation's name, where these do not fit one another."""
    _, heads, dim = q.shape
    if k_pages.shape != v_pages.shape or k_pages.shape[3] != dim or heads % k_pages.shape[2]:
        raise ValueError(f"{operation}: q {q.shape} does not fit pools {k_pages.shape}, {v_pages.shape}")
    if kv_len.shape != page_table.shape[:1]:
        raise ValueError(f"{operation}: page_table {page_table.shape} and kv_len {kv_len.shape} differ in rows")
    if window is not None and window < 1:
        raise ValueError(f"{operation}: window={window} must be at least 1, or None for full attention")
    for name, per_head in (("alibi_slopes", alibi_slopes), ("sinks", sinks)):
        if per_head is not None and per_head.shape != (heads,):
            raise ValueError(f"{operation}: {name} {per_head.shape} must hold one number for each of {heads} heads")
    if position_bias is not None and (position_bias.ndim != 2 or position_bias.shape[0] != heads):
        raise ValueError(
            f"{operation}: position_bias {position_bias.shape} must hold numbers by distance for {heads} heads"
        )
