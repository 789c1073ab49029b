"""What moe's kernels do at sizes or under configurations that the operation's small cases do not reach."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import choose, tuning
from pallas_kernels.moe import moe, triton
from pallas_kernels.moe.shapes import CASES

NAMED = {case.name: case for case in CASES}


@pytest.mark.parametrize("name", ["many", "empty-experts", "all-padding"])
def test_assignments_are_counted_in_sections(name: str, interpreter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton, "_LISTED", 0)
    monkeypatch.setattr(triton, "_SECTION", 128)
    _check(name)


@pytest.mark.parametrize("name", ["empty-experts", "all-padding", "gpt-oss"])
@pytest.mark.parametrize("programs", [0, 3])
def test_down_reads_by_tma(name: str, programs: int, interpreter: None) -> None:
    with tuning.trying("grouped", tma=1, programs=programs, alone=0, depth=8, size=32):
        _check(name, np.float16)


@pytest.mark.parametrize("experts", [1, 6])
def test_a_plan_holds_every_assignment_once_in_order(
    experts: int, interpreter: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton, "_LISTED", 0)
    monkeypatch.setattr(triton, "_SECTION", 128)
    ids = np.random.default_rng(experts).integers(-1, experts + 1, (333, 3), dtype=np.int32)
    plan = triton._plan(jnp.asarray(ids), experts, 16)
    found: dict[int, list[int]] = {}
    for block in range(int(plan.used[0])):
        filled = int(plan.filled[block])
        assert 0 < filled <= 16
        found.setdefault(int(plan.expert[block]), []).extend(plan.order[block * 16 : block * 16 + filled].tolist())
    assert found == {e: np.flatnonzero(ids.reshape(-1) == e).tolist() for e in range(experts)}


def _check(name: str, dtype: Any = np.float32) -> None:
    operands, options = NAMED[name].arguments(np.random.default_rng(0), dtype)
    (expected,) = NAMED[name].expected(operands, options)
    with choose.using("triton"):
        found = moe(*map(jnp.asarray, operands), **options)
    atol = 4 * np.finfo(dtype).eps * max(1.0, np.abs(expected).max())
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=0, atol=atol)
