"""What kernels have the second-level cache fetch: exactly what is about to be read, and results are as without it."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import choose, tuning
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.decode_attention.shapes import CASES
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.paged_attention.shapes import CASES as ATTENTION_CASES
from pallas_kernels.rms_norm_residual import rms_norm_residual


@pytest.fixture
def fetched(interpreter: None, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """What kernels fetch, an array of every 16th address for each call; the interpreter has no instructions of a
    GPU."""
    import triton.language as tl

    calls: list[np.ndarray] = []

    def record(asm: str, constraints: str, args: list[Any], *_: Any, **__: Any) -> Any:
        assert "@p cp.async.bulk.prefetch.L2" in asm
        addresses, sizes, mask = (arg.handle.data for arg in args)
        assert (addresses % 16 == 0).all()
        assert (sizes % 16 == 0).all()
        calls.append((addresses[mask != 0, None] + np.arange(0, sizes[0], 16)).reshape(-1))
        return args[0]

    monkeypatch.setattr(tl, "inline_asm_elementwise", record)
    return calls


@pytest.fixture
def with_triton() -> Iterator[None]:
    with choose.using("triton"):
        yield


def offsets(calls: list[np.ndarray]) -> np.ndarray:
    """Distinct addresses in order, from the first on."""
    found = np.unique(np.concatenate([call.reshape(-1) for call in calls]))
    return found - found[0]


@pytest.mark.parametrize(("fetchers", "kib"), [(4, 3), (7, 2), (132, 1), (3, 32), (1, 33)])
def test_a_norm_fetches_the_first_of_what_is_read_next(
    fetchers: int, kib: int, fetched: list[np.ndarray], with_triton: None
) -> None:
    rng = np.random.default_rng()
    x, residual, weight, soon = (
        jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 80), (3, 80), 80, (64, 160))
    )
    plain = rms_norm_residual(x, residual, weight, 1e-5, soon=soon)
    assert not fetched, "where nothing was measured"
    with tuning.trying("rms_norm_residual", fetchers=fetchers, fetch=kib):
        results = rms_norm_residual(x, residual, weight, 1e-5, soon=soon)
    np.testing.assert_array_equal(offsets(fetched), np.arange(0, kib * 1024, 16))
    assert len(fetched) == fetchers
    for one, other in zip(plain, results, strict=True):
        np.testing.assert_array_equal(one, other)
    fetched.clear()
    with tuning.trying("rms_norm_residual", fetchers=fetchers, fetch=1 << 20):
        rms_norm_residual(x, residual, weight, 1e-5, soon=soon)
        np.testing.assert_array_equal(offsets(fetched), np.arange(0, soon.size * 4, 16))  # no more than there is
        fetched.clear()
        rms_norm_residual(x, residual, weight, 1e-5)
        rms_norm_residual(*(jnp.tile(a, (86, 1)) for a in (x, residual)), weight, 1e-5, soon=soon)  # of a prompt
    assert not fetched


def test_a_decode_fetches_the_first_of_what_is_read_next(fetched: list[np.ndarray], with_triton: None) -> None:
    (case,) = (case for case in CASES if case.name == "decode-splits-many-rows")
    operands, options = case.arguments(np.random.default_rng(), jnp.dtype("float32"))
    arrays = jax.tree.map(jnp.asarray, operands)
    soon = jnp.zeros((64, 64), jnp.float32)
    plain = decode_attention(*arrays, **options)
    with tuning.trying("decode_attention", fetchers=10, fetch=8):
        results = decode_attention(*arrays, **options, soon=soon)
    np.testing.assert_array_equal(offsets(fetched), np.arange(0, 8 * 1024, 16))
    for one, other in zip(plain, results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("operation", [paged_attention, decode_attention])
def test_items_fetch_their_own_keys_and_values(
    operation: Callable[..., Any], fetched: list[np.ndarray], with_triton: None
) -> None:
    cases = ATTENTION_CASES if operation is paged_attention else CASES
    (case,) = (case for case in cases if case.name == "decode-splits")
    operands, options = case.arguments(np.random.default_rng(), jnp.dtype("float32"))
    arrays = jax.tree.map(jnp.asarray, operands)
    plain = operation(*arrays, **options)
    with tuning.trying("decode", ahead=64):
        results = operation(*arrays, **options)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(results), strict=True):
        np.testing.assert_array_equal(one, other)
    attention = getattr(case, "attention", case)
    table = operands[3] if operation is paged_attention else operands[6]
    bytes_of_token = attention.dim * 4
    expected: set[int] = set()
    for row, (_, kv_len) in enumerate(attention.rows):
        held = kv_len - (operation is decode_attention)  # the newest are in no pool yet
        for begin in range(0, kv_len, 128):  # an item has 128 tokens here
            seen = np.arange(begin, min(begin + 64, held))
            token = table[row, seen // attention.page] * attention.page + seen % attention.page
            places = token[:, None] * attention.kv_heads + np.arange(attention.kv_heads)
            expected |= set((places.reshape(-1, 1) * bytes_of_token + np.arange(0, bytes_of_token, 16)).flat)
    found = np.array(sorted(expected))
    np.testing.assert_array_equal(offsets(fetched[::2]), found - found[0])  # keys
    np.testing.assert_array_equal(offsets(fetched[1::2]), found - found[0])  # values
