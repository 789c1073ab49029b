"""Layers on their own, against the plainest statement of what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxllm.layers.attention import attend
from jaxllm.layers.cache import PagedCache
from jaxllm.layers.embed import Embed
from jaxllm.layers.linear import Linear
from jaxllm.layers.norm import LayerNorm, RMSNorm
from jaxllm.layers.parameter import Constant, Parameter, count_parameters, parameters
from jaxllm.layers.rope import Linear as LinearRope
from jaxllm.layers.rope import Llama3, Rope
from jaxllm.layers.step import DenseStep, Step


def rand(*shape: int, seed: int = 0, dtype="float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def fill(module: nnx.Module, seed: int = 5) -> None:
    for index, leaf in enumerate(parameters(module).values()):
        leaf.set_value(rand(*leaf.shape, seed=seed + index, dtype=leaf.dtype))


def test_parameters_are_abstract_and_named_by_path():
    linear = Linear(3, (4, 2), "bfloat16", axes=("embed", "qkv"), bias=True)
    named = parameters(linear)
    assert sorted(named) == ["bias", "kernel"]
    assert named["kernel"].get_value() == jax.ShapeDtypeStruct((3, 6), jnp.bfloat16)
    assert (named["kernel"].axes, named["kernel"].parts) == (("embed", "qkv"), (4, 2))
    assert named["bias"].init == Constant(0.0)
    assert count_parameters(linear) == 24


def test_a_declaration_survives_split_and_merge():
    linear = Linear(3, (4, 2), "float32", axes=("embed", "qkv"))
    fill(linear)
    again = nnx.merge(*nnx.split(linear))
    assert isinstance(again.kernel, Parameter)
    assert again.kernel.parts == (4, 2)
    np.testing.assert_array_equal(again(rand(2, 3)), linear(rand(2, 3)))


def test_linear_splits_its_fused_outputs():
    linear = Linear(3, (4, 2), "float32", axes=("embed", "qkv"), bias=True)
    fill(linear)
    x = rand(5, 3)
    whole = np.asarray(x) @ np.asarray(linear.kernel[...]) + np.asarray(linear.bias[...])
    first, second = linear.split(x)
    np.testing.assert_allclose(first, whole[:, :4], rtol=1e-5)
    np.testing.assert_allclose(second, whole[:, 4:], rtol=1e-5)


def test_any_leaf_with_matmul_may_be_a_kernel():
    class Doubled(nnx.Module):
        def __init__(self, kernel):
            self.kernel = kernel

        def matmul(self, x, dtype=None):
            return 2 * self.kernel.matmul(x, dtype)

    linear = Linear(3, 4, "float32", axes=("embed", "mlp"))
    fill(linear)
    plain = linear(rand(5, 3))
    linear.kernel = Doubled(linear.kernel)
    np.testing.assert_allclose(linear(rand(5, 3)), 2 * plain)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_matmul_accumulates_in_float32(dtype):
    """4096 ones: a sum kept in bfloat16 stops at 256, one in float16 at 2048."""
    linear = Linear(4096, 1, dtype, axes=("embed", "mlp"))
    linear.kernel.set_value(jnp.ones((4096, 1), dtype))
    x = jnp.ones((1, 4096), dtype)
    assert linear(x).dtype == jnp.dtype(dtype)
    assert float(linear(x)[0, 0]) == 4096
    embed = Embed(1, 4096, dtype)
    embed.table.set_value(jnp.ones((1, 4096), dtype))
    assert embed.logits(x).dtype == jnp.float32
    assert float(embed.logits(x)[0, 0]) == 4096


def test_norms():
    x = rand(2, 3, 8) * 3 + 1
    rms, layer = RMSNorm(8, 1e-3, "float32"), LayerNorm(8, 1e-3, "float32")
    fill(rms)
    fill(layer)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-3) * np.asarray(rms.weight[...])
    np.testing.assert_allclose(rms(x), expected, rtol=1e-5)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-3)
    expected = expected * np.asarray(layer.weight[...]) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-6)


def test_rope_frequencies():
    plain = Rope(8, 10000.0).frequencies()
    np.testing.assert_allclose(plain, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(Rope(8, 10000.0, LinearRope(4.0)).frequencies(), plain / 4, rtol=1e-6)
    scaled = Rope(8, 10000.0, Llama3(8.0, 1.0, 4.0, 64)).frequencies()  # turns within 64: 10.2, 1.02, 0.1, 0.01
    np.testing.assert_allclose(scaled[[0, 2, 3]], [1.0, 0.01 / 8, 0.001 / 8], rtol=1e-6)
    assert 0.1 / 8 < scaled[1] < 0.1


def test_rope_angles():
    cos, sin = Rope(4, 100.0)(jnp.asarray([0, 3], jnp.int32))
    np.testing.assert_allclose(cos, np.cos([[0, 0], [3, 0.3]]), rtol=1e-6)
    np.testing.assert_allclose(sin, np.sin([[0, 0], [3, 0.3]]), rtol=1e-6)


@pytest.mark.parametrize("window", [None, 1, 3])
def test_dense_and_paged_attention_agree(window):
    batch, length, heads, kv_heads, dim, page = 2, 11, 6, 2, 4, 4
    q, k, v = (rand(batch * length, n, dim, seed=i) for i, n in enumerate((heads, kv_heads, kv_heads)))
    dense = DenseStep.of(jnp.zeros((batch, length), jnp.int32))
    expected, none = attend(q, k, v, dense, None, scale=0.3, window=window)
    assert none is None

    table = np.asarray([[3, 1, 6], [2, 5, 4]], np.int32)
    place = np.arange(length)
    step = Step(
        tokens=dense.tokens,
        positions=dense.positions,
        query_start=jnp.asarray([0, length, 2 * length], jnp.int32),
        kv_len=jnp.full(2, length, jnp.int32),
    )
    cache = PagedCache(
        pools=tuple(jnp.full((7, page, kv_heads, dim), jnp.nan) for _ in range(2)),
        page_table=jnp.asarray(table),
        write_index=jnp.asarray((table[:, place // page] * page + place % page).reshape(-1)),
    )
    actual, cache = attend(q, k, v, step, cache, scale=0.3, window=window)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(cache.pools[0][3, 0], k[0])


def test_dense_attention_is_causal_windowed_and_differentiable():
    length, window = 7, 3
    q, k, v = (rand(length, 2, 4, seed=i) for i in range(3))
    step = DenseStep.of(jnp.zeros((1, length), jnp.int32))

    def of_last_but_one(v: jax.Array) -> jax.Array:
        return attend(q, k, v, step, None, scale=0.5, window=window)[0][5].sum()

    seen = np.abs(jax.grad(of_last_but_one)(v)).sum(axis=(1, 2)) > 0
    assert seen.tolist() == [False, False, False, True, True, True, False]


def test_embedding_clamps_padding():
    embed = Embed(3, 2, "float32", axis="position")
    fill(embed)
    got = embed(jnp.asarray([2, 7], jnp.int32))
    np.testing.assert_array_equal(got[0], embed.table[2])
    np.testing.assert_array_equal(got[1], embed.table[2])
