"""The chooser: order, declining, forcing, and what it remembers."""

import logging

import jax.numpy as jnp
import pytest

from pallas_kernels import choose
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.rms_norm import rms_norm


def test_cpu_takes_the_reference_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    choose._choices.clear()
    with caplog.at_level(logging.INFO, logger="pallas_kernels.choose"):
        for _ in range(2):
            rms_norm(jnp.ones((2, 8)), jnp.ones((8,)), 1e-6)
    assert choose.choices() == [choose.Choice("rms_norm", "reference")]
    assert [record.getMessage() for record in caplog.records] == ["rms_norm: reference"]


def _attend(dim: int, page: int = 16) -> object:
    zeros = jnp.zeros
    pool = zeros((2, page, 1, dim))
    one = jnp.ones((1,), jnp.int32)
    start = jnp.arange(2, dtype=jnp.int32)
    return paged_attention(zeros((1, 1, dim)), pool, pool, one[:, None], start, one, scale=1.0, decode=True)


def test_a_declining_kernel_leaves_the_call_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jax_triton")
    monkeypatch.setattr(choose, "_order", lambda: choose.BACKENDS)
    choose._choices.clear()
    _attend(dim=512)
    [choice] = choose.choices()
    assert choice.backend == "reference"
    first, second = "decodes are bound by memory, which Triton's kernel reads as fast", "head_dim 512 is over 256"
    assert str(choice) == f"paged_attention: reference; not mosaic: {first}; not triton: {second}"


def test_an_insisted_on_kernel_that_declines_is_an_error() -> None:
    pytest.importorskip("jax_triton")
    with choose.using("triton"), pytest.raises(NotImplementedError, match="head_dim 512 is over 256"):
        _attend(dim=512)


def test_insisting_leaves_operations_without_a_kernel_alone() -> None:
    with choose.using("triton"):
        assert rms_norm(jnp.ones((2, 8)), jnp.ones((8,)), 0.0).shape == (2, 8)


def test_environment_names_a_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXLLM_KERNELS", "cuda")
    with pytest.raises(ValueError, match="JAXLLM_KERNELS='cuda' is no backend; choose one of mosaic, triton"):
        _attend(dim=8)


def test_misfits_are_named() -> None:
    with pytest.raises(ValueError, match="must be \\(8,\\)"):
        rms_norm(jnp.ones((2, 8)), jnp.ones((4,)), 1e-6)


def test_a_number_per_head_is_asked_for() -> None:
    pool = jnp.zeros((2, 16, 1, 8))
    one = jnp.ones((1,), jnp.int32)
    start = jnp.arange(2, dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"sinks \(2,\) must hold one number for each of 1 heads"):
        paged_attention(
            jnp.zeros((1, 1, 8)), pool, pool, one[:, None], start, one, scale=1.0, sinks=jnp.ones((2,)), decode=True
        )
