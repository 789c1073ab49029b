"""The Mosaic kernels without a GPU: through the interpreter at small shapes, and lowered for Hopper at real ones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.paged_attention.shapes import AttentionCase

pytest.importorskip("jax_triton")

from pallas_kernels.paged_attention import mosaic

ROWS = ((70, 200), (0, 0), (1, 130), (130, 130), (64, 128))


@pytest.mark.parametrize(
    "facts",
    [
        pytest.param({"heads": 4, "kv_heads": 2, "dim": 64, "page": 64}, id="two-heads-a-tile"),
        pytest.param({"heads": 3, "kv_heads": 1, "dim": 128, "page": 128}, id="odd-group"),
    ],
)
def test_extend_agrees_with_numpy(facts: dict[str, Any]) -> None:
    case = AttentionCase("ragged", ROWS, padding=9, **facts)
    operands, options = case.arguments(np.random.default_rng(0), jnp.float16)
    interpret = plgpu.InterpretGPUParams()
    out = mosaic.extend(*map(jnp.asarray, operands), scale=options["scale"], interpret=interpret)
    [want] = case.expected(operands, options)
    start = operands[4]
    single = np.zeros(len(want), bool)
    single[[start[row] for row, (count, _) in enumerate(ROWS) if count == 1]] = True
    np.testing.assert_allclose(np.asarray(out, np.float64)[~single], want[~single], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("dim", "page", "kv_heads"), [(128, 64, 8), (64, 128, 32), (128, 256, 1)])
def test_extend_lowers_for_hopper(dim: int, page: int, kv_heads: int) -> None:
    def halves(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    pool = halves(1000, page, kv_heads, dim)
    operands = halves(8192, 32, dim), pool, pool, integers(256, 520), integers(257), integers(256)
    traced = jax.jit(lambda *operands: mosaic.extend(*operands, scale=dim**-0.5)).trace(*operands)
    assert "mosaic_gpu" in traced.lower(lowering_platforms=("cuda",)).as_text()
