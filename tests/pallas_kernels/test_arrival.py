"""Attention over split keys, whichever of a row's items arrives last."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import choose
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.shapes import AttentionCase


@pytest.mark.parametrize("order", ["backwards", "shuffled"])
def test_results_do_not_depend_on_the_order_of_arrival(
    order: str, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    rows = tuple((1, length) for length in (random.randint(257, 384), 1, random.randint(129, 256)))
    case = AttentionCase("split", rows, decode=True, heads=8, kv_heads=2, sinks=True)
    operands, options = case.arguments(np.random.default_rng(), jnp.dtype("float32"))

    def attend() -> np.ndarray:
        with choose.using("triton"):
            return np.asarray(paged_attention(*jax.tree.map(jnp.asarray, operands), **options))

    in_order = attend()
    place, orders = InterpreterBuilder.set_grid_idx, {}

    def elsewhere(self: InterpreterBuilder, x: int, y: int, z: int) -> None:
        items = self.grid_dim[1]
        if items not in orders:
            orders[items] = random.sample(range(items), items) if order == "shuffled" else range(items)[::-1]
        place(self, x, orders[items][y], z)

    monkeypatch.setattr(InterpreterBuilder, "set_grid_idx", elsewhere)
    np.testing.assert_array_equal(attend(), in_order)
    assert orders
    [expected] = case.expected(operands, options)
    np.testing.assert_allclose(in_order, expected, rtol=0, atol=1e-5)
