"""Every implementation of every operation, over the operation's cases, against plain numpy in float64."""

import functools
import importlib
import math
import re
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import choose

OPERATIONS = {
    "paged_attention": ("reference", "triton"),
    "decode_attention": ("reference", "triton"),
    "ragged_attention": ("reference", "triton"),
    "mla_attention": ("reference", "triton"),
    "kv_write": ("reference", "triton"),
    "latent_write": ("reference", "triton"),
    "rope": ("reference",),
    "qk_norm_rope_kv_write": ("reference", "triton"),
    "rms_norm": ("reference",),
    "rms_norm_residual": ("reference", "triton"),
    "softmax_top_k": ("reference", "triton"),
    "moe": ("reference", "triton"),
    "causal_conv": ("reference", "triton"),
    "selective_scan": ("reference", "triton"),
    "ssd": ("reference", "triton"),
    "sampling_threshold": ("reference", "triton"),
    "sampling_draw": ("reference", "triton"),
}
# Of the largest magnitude expected: a few roundings of the operands' type.
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


def _calls() -> list[Any]:
    calls = []
    for operation, backends in OPERATIONS.items():
        for backend in backends:
            # Triton's interpreter multiplies bfloat16 wrongly; scripts/check_kernels.py checks it on a GPU.
            for dtype in ("float32", "bfloat16" if backend == "reference" else "float16"):
                for case in importlib.import_module(f"pallas_kernels.{operation}.shapes").CASES:
                    if not case.large:
                        name = f"{operation}-{backend}-{dtype}-{case.name}"
                        calls.append(pytest.param(operation, backend, dtype, case, id=name))
    return calls


@pytest.mark.parametrize(("operation", "backend", "dtype", "case"), _calls())
def test_agrees_with_numpy(operation: str, backend: str, dtype: str, case: Any, request: pytest.FixtureRequest) -> None:
    if backend == "triton":
        request.getfixturevalue("interpreter")
    public = getattr(importlib.import_module(f"pallas_kernels.{operation}"), operation)
    rng = np.random.default_rng(zlib.crc32(case.name.encode()))
    operands, options = case.arguments(rng, jnp.dtype(dtype))
    run = functools.partial(public, **options)
    with choose.using(backend):  # the interpreter runs outside jit only
        result = (jax.jit(run) if backend == "reference" else run)(*jax.tree.map(jnp.asarray, operands))
    results, expected = jax.tree.leaves(result), case.expected(operands, options)
    assert len(results) == len(expected)
    for got, want in zip(results, expected, strict=True):
        assert got.shape == want.shape
        assert got.dtype == (dtype if want.dtype == np.float64 else want.dtype)
        told = ~np.isnan(want)
        np.testing.assert_allclose(
            np.asarray(got, np.float64)[told],
            want[told],
            rtol=0,
            atol=TOLERANCE[dtype] * max(1.0, np.nanmax(np.abs(want), initial=0.0)),
        )


def _pools_and_operands(operation: str) -> tuple[tuple[int, ...], list[jax.ShapeDtypeStruct]]:
    """Which operands are pools, and the operands of a call."""

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    index = jax.ShapeDtypeStruct((16,), jnp.int32)
    pool, new, angles = floats(64, 16, 2, 64), floats(16, 2, 64), floats(16, 32)
    rows = [index, jax.ShapeDtypeStruct((17,), jnp.int32), jax.ShapeDtypeStruct((16,), jnp.bool_)]
    scanned = [floats(20, 2, 64), floats(20, 2), floats(2), floats(20, 1, 16), floats(20, 1, 16), floats(2)]
    match operation:
        case "kv_write":
            return (0, 1), [pool, pool, new, new, index]
        case "latent_write":
            return (0,), [floats(64, 16, 72), floats(16, 72), index]
        case "qk_norm_rope_kv_write":
            return (3, 4), [floats(16, 6, 64), angles, angles, pool, pool, index]
        case "decode_attention":
            lengths, table = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((16,), (16, 1)))
            return (3, 4), [floats(16, 8, 64), angles, angles, pool, pool, index, table, lengths]
        case "causal_conv":
            return (1,), [floats(20, 64), floats(64, 64, 3), floats(64, 4), floats(64), *rows]
        case "selective_scan":
            by_channel = [floats(20, 64), floats(20, 64), floats(64, 16)]
            return (6,), [*by_channel, floats(20, 16), floats(20, 16), floats(64), floats(64, 64, 16), *rows]
        case _:
            return (6,), [*scanned, floats(64, 2, 64, 16), *rows]


@pytest.mark.parametrize(
    "operation",
    ["kv_write", "latent_write", "qk_norm_rope_kv_write", "decode_attention", "causal_conv", "selective_scan", "ssd"],
)
def test_reference_writes_donated_pools_in_place(operation: str) -> None:
    public = getattr(importlib.import_module(f"pallas_kernels.{operation}"), operation)
    pools, operands = _pools_and_operands(operation)
    pool = operands[pools[0]]
    if operation == "decode_attention":
        public = functools.partial(public, scale=0.125)
    with choose.using("reference"):
        compiled = jax.jit(public, donate_argnums=pools).lower(*operands).compile()
    copied = re.findall(r"= \S*?\[([\d,]*)\]\S* copy\(", compiled.as_text())
    assert all(math.prod(map(int, filter(None, dims.split(",")))) < pool.size for dims in copied)
    memory = compiled.memory_analysis()
    assert memory.alias_size_in_bytes == len(pools) * pool.size * 4
    assert memory.temp_size_in_bytes < pool.size * 4
