"""Kernels take from their grid what they need of the number of tokens, so that each is compiled once."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import choose
from pallas_kernels.causal_conv import causal_conv
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.kv_write import kv_write
from pallas_kernels.moe import moe
from pallas_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from pallas_kernels.rms_norm_residual import rms_norm_residual
from pallas_kernels.sampling_draw import sampling_draw
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.softmax_top_k import softmax_top_k
from pallas_kernels.ssd import ssd


def _zeros(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
    return jnp.zeros(shape, dtype)


def _ints(*shape: int) -> jax.Array:
    return jnp.zeros(shape, jnp.int32)


def _call(operation: str, tokens: int) -> None:
    """The operation for so many tokens, or as many rows of one, with nothing else that differs."""
    pool, angles = _zeros(5, 16, 4, 64), _zeros(tokens, 32, dtype=jnp.float32)
    floats = _zeros(tokens, dtype=jnp.float32)
    rows = _ints(tokens // 8), _ints(tokens // 8 + 1), _zeros(tokens // 8, dtype=jnp.bool_)
    match operation:
        case "rms_norm_residual":
            rms_norm_residual(_zeros(tokens, 256), _zeros(tokens, 256), _zeros(256), 1e-6)
        case "kv_write":
            kv_write(pool, pool, _zeros(tokens, 4, 64), _zeros(tokens, 4, 64), _ints(tokens))
        case "qk_norm_rope_kv_write":
            qk_norm_rope_kv_write(_zeros(tokens, 24, 64), angles, angles, pool, pool, _ints(tokens))
        case "decode_attention":
            table, length = _ints(tokens, 4), _ints(tokens)
            decode_attention(_zeros(tokens, 24, 64), angles, angles, pool, pool, length, table, length, scale=0.1)
        case "softmax_top_k":
            softmax_top_k(_zeros(tokens, 64, dtype=jnp.float32), _zeros(tokens, dtype=jnp.bool_), top_k=4)
        case "moe":
            weights = _zeros(2, 64, 128), _zeros(2, 64, 64)
            chosen = _ints(tokens, 2), _zeros(tokens, 2, dtype=jnp.float32)
            moe(_zeros(tokens, 64), *weights, *chosen, activation="silu")
        case "causal_conv":
            operands = _zeros(tokens, 64), _zeros(9, 64, 3), _zeros(64, 4), _zeros(64)
            causal_conv(*operands, *rows, activation="silu", decode=False)
        case "selective_scan":
            A, B, D = _zeros(64, 16, dtype=jnp.float32), _zeros(tokens, 16), _zeros(64, dtype=jnp.float32)
            states = _zeros(9, 64, 16, dtype=jnp.float32)
            selective_scan(
                _zeros(tokens, 64), _zeros(tokens, 64, dtype=jnp.float32), A, B, B, D, states, *rows, decode=False
            )
        case "ssd":
            A, B, dt = _zeros(8, dtype=jnp.float32), _zeros(tokens, 1, 128), _zeros(tokens, 8, dtype=jnp.float32)
            states = _zeros(9, 8, 64, 128, dtype=jnp.float32)
            ssd(_zeros(tokens, 8, 64), dt, A, B, B, A, states, *rows, decode=False)
        case "sampling_draw":
            seed = _zeros(tokens, 2, dtype=jnp.uint32)
            logits = _zeros(tokens, 512, dtype=jnp.float32)
            sampling_draw(logits, floats, floats, seed, _ints(tokens), _ints(tokens))
        case _:
            raise AssertionError(operation)


@pytest.mark.parametrize(
    "operation",
    [
        "rms_norm_residual", "kv_write", "qk_norm_rope_kv_write", "decode_attention", "softmax_top_k", "moe",
        "causal_conv", "selective_scan", "ssd", "sampling_draw",
    ],
)  # fmt: skip
def test_kernels_are_compiled_for_no_number_of_tokens(operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jax_triton = pytest.importorskip("jax_triton")
    compiled: dict[str, dict[str, Any]] = {}

    def note(*_: Any, kernel: Any, out_type: Any, grid: Any, name: str, **options: Any) -> Any:
        known = inspect.signature(kernel.fn).parameters
        compiled[name] = {key: value for key, value in options.items() if key in known or key.startswith("num_")}
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), out_type)

    monkeypatch.setattr(jax_triton, "triton_call", note)
    of_sizes = []
    for tokens in (2560, 3072):
        compiled.clear()
        with choose.using("triton"):
            _call(operation, tokens)
        of_sizes.append(dict(compiled))
    assert of_sizes[0]
    assert of_sizes[0] == of_sizes[1]
