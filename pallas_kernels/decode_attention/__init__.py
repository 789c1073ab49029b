"""A decode's attention with all that comes before it, in one kernel where there is one."""

import jax
import jax.numpy as jnp

from pallas_kernels import choose, paged_attention, qk_norm_rope_kv_write


def decode_attention(
    qkv: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    page_table: jax.Array,
    kv_len: jax.Array,
    *,
    scale: float,
    q_weight: jax.Array | None = None,
    k_weight: jax.Array | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
    window: int | None = None,
    soft_cap: float | None = None,
    alibi_slopes: jax.Array | None = None,
    sinks: jax.Array | None = None,
    position_bias: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """qk_norm_rope_kv_write, then paged_attention of a decode; returns (out [R, H, D], k_pages, v_pages).

    Row r is token r: qkv [R, H + 2 KH, D], cos and sin [R, RD], index [R] as the former has them, page_table [R, MP]
    and kv_len [R], the tokens of a row with this step's, as the latter; the options are theirs. index[r] is where
    position kv_len[r] - 1 of row r lies, and no other row sees it. What a row of kv_len 0 writes goes to page 0, if
    anywhere; its result is zeros.
    """
    name = "decode_attention"
    rows, heads, dim = qkv.shape
    qk_norm_rope_kv_write.check(qkv, cos, sin, k_pages, v_pages, index, q_weight, k_weight, operation=name)
    q = jax.ShapeDtypeStruct((rows, heads - 2 * k_pages.shape[2], dim), qkv.dtype)
    paged_attention.check(
        q, k_pages, v_pages, page_table, kv_len,
        window=window, alibi_slopes=alibi_slopes, sinks=sinks, position_bias=position_bias, operation=name,
    )  # fmt: skip
    if page_table.shape[0] != rows:
        raise ValueError(f"{name}: qkv {qkv.shape} and page_table {page_table.shape} disagree about the rows")
    if window is not None:  # no longer than any row: kernels add it to positions
        window = min(window, page_table.shape[1] * k_pages.shape[1])
    result: tuple[jax.Array, jax.Array, jax.Array] = choose.run(
        name,
        ("triton", "reference"),
        qkv,
        cos,
        sin,
        k_pages,
        v_pages,
        index,
        page_table,
        kv_len,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        interleaved=interleaved,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        alibi_slopes=None if alibi_slopes is None else jnp.asarray(alibi_slopes, jnp.float32),
        sinks=None if sinks is None else jnp.asarray(sinks, jnp.float32),
        position_bias=None if position_bias is None else jnp.asarray(position_bias, jnp.float32),
    )
    return result
