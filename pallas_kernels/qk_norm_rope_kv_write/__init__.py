"""What lies between the projections and attention, in one kernel where there is one: norm, rotation, KV write."""

import jax

from pallas_kernels import choose


def qk_norm_rope_kv_write(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    *,
    q_weight: jax.Array | None = None,
    k_weight: jax.Array | None = None,
    eps: float = 1e-6,
    interleaved: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns (q, k_pages, v_pages): queries and keys normalised and rotated, keys and values written to the pools.

    q: [T, H, D]; k: [T, KH, D]; v: [T, KH, DV]; k_pages: [P, page, KH, D]; v_pages: [P, page, KH, DV];
    index: [T] int32, page * page_size + offset; in place when the pools are donated, as kv_write.
    q_weight, k_weight: [D], an RMS norm of each head by itself, rounded to q's type; None leaves them as they are.
    cos, sin: [T, R], R at most D/2, turn the first 2R numbers of each head, half with half as rope does or, with
    `interleaved`, each with its neighbour (GPT-J); None turns nothing.
    """
    tokens, _, dim = q.shape
    if (cos is None) != (sin is None) or (
        cos is not None and (sin is None or sin.shape != cos.shape or cos.shape[:1] != (tokens,))
    ):
        raise ValueError(
            f"qk_norm_rope_kv_write: cos and sin are both [T, R] or both None, got {_shape(cos)} and {_shape(sin)}"
        )
    if cos is not None and 2 * cos.shape[1] > dim:
        raise ValueError(f"qk_norm_rope_kv_write: cos {cos.shape} turns more than head dim {dim}; R is D/2 at most")
    if k.shape != (tokens, *k_pages.shape[2:]) or v.shape != (tokens, *v_pages.shape[2:]) or index.shape != (tokens,):
        raise ValueError(
            f"qk_norm_rope_kv_write: q {q.shape}, k {k.shape}, v {v.shape}, index {index.shape} do not fit"
            f" pools {k_pages.shape}, {v_pages.shape}"
        )
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and weight.shape != (dim,):
            raise ValueError(f"qk_norm_rope_kv_write: {name} {weight.shape} must be ({dim},), the head dim")
    result: tuple[jax.Array, jax.Array, jax.Array] = choose.run(
        "qk_norm_rope_kv_write",
        ("triton", "reference"),
        q,
        k,
        v,
        cos,
        sin,
        k_pages,
        v_pages,
        index,
        q_weight=q_weight,
        k_weight=k_weight,
        eps=eps,
        interleaved=interleaved,
    )
    return result


def _shape(x: jax.Array | None) -> tuple[int, ...] | None:
    return None if x is None else x.shape
