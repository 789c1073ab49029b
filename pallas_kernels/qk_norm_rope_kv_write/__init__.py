"""What lies between the projections and attention, in one kernel where there is one: norm, rotation, KV write."""

import jax

from pallas_kernels import choose


def qk_norm_rope_kv_write(
    qkv: jax.Array,
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

    qkv: [T, H + 2 KH, D], each token's queries, keys and values one behind the other, as one matmul makes them;
    k_pages, v_pages: [P, page, KH, D]; index: [T] int32, page * page_size + offset; in place when the pools are
    donated, as kv_write. The queries returned are [T, H, D].
    q_weight, k_weight: [D], an RMS norm of each head by itself, rounded to q's type; None leaves them as they are.
    cos, sin: [T, R], R at most D/2, turn the first 2R numbers of each head, half with half as rope does or, with
    `interleaved`, each with its neighbour (GPT-J); None turns nothing.
    """
    check(qkv, cos, sin, k_pages, v_pages, index, q_weight, k_weight)
    result: tuple[jax.Array, jax.Array, jax.Array] = choose.run(
        "qk_norm_rope_kv_write",
        ("triton", "reference"),
        qkv,
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


def check(
    qkv: jax.Array,
    cos: jax.Array | None,
    sin: jax.Array | None,
    k_pages: jax.Array,
    v_pages: jax.Array,
    index: jax.Array,
    q_weight: jax.Array | None,
    k_weight: jax.Array | None,
    operation: str = "qk_norm_rope_kv_write",
) -> None:
    """Raises ValueError, in an operation's name, where these do not fit one another."""
    tokens, heads, dim = qkv.shape
    if (cos is None) != (sin is None) or (
        cos is not None and (sin is None or sin.shape != cos.shape or cos.shape[:1] != (tokens,))
    ):
        raise ValueError(f"{operation}: cos and sin are both [T, R] or both None, got {_shape(cos)} and {_shape(sin)}")
    if cos is not None and 2 * cos.shape[1] > dim:
        raise ValueError(f"{operation}: cos {cos.shape} turns more than head dim {dim}; R is D/2 at most")
    kv_heads = k_pages.shape[2]
    if k_pages.shape != v_pages.shape or dim != k_pages.shape[3] or heads <= 2 * kv_heads or index.shape != (tokens,):
        raise ValueError(
            f"{operation}: qkv {qkv.shape} and index {index.shape} do not fit pools {k_pages.shape}, {v_pages.shape}"
        )
    for name, weight in (("q_weight", q_weight), ("k_weight", k_weight)):
        if weight is not None and weight.shape != (dim,):
            raise ValueError(f"{operation}: {name} {weight.shape} must be ({dim},), the head dim")


def _shape(x: jax.Array | None) -> tuple[int, ...] | None:
    return None if x is None else x.shape
