"""Operations with states: calls that do not fit are named, and what the kernels cannot serve they decline."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import choose
from pallas_kernels.causal_conv import causal_conv
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.ssd import ssd


def _rows(count: int = 2) -> dict[str, jax.Array]:
    whole = jnp.arange(count + 1, dtype=jnp.int32)
    return {"index": whole[1:], "query_start": whole, "fresh": jnp.zeros((count,), bool)}


def _conv(**changed: Any) -> Any:
    operands = {"x": jnp.ones((2, 8)), "states": jnp.ones((3, 8, 3)), "weight": jnp.ones((8, 4)), "bias": None}
    return causal_conv(**(operands | _rows() | changed))


def _scan(**changed: Any) -> Any:
    size = changed.pop("size", 4)
    operands = {name: jnp.ones((2, 8)) for name in ("x", "dt")} | {name: jnp.ones((2, size)) for name in "BC"}
    operands |= {"A": -jnp.ones((8, size)), "D": None, "states": jnp.ones((3, 8, size))}
    return selective_scan(**(operands | _rows() | changed))


def _dual(**changed: Any) -> Any:
    size = changed.pop("size", 4)
    operands = {"x": jnp.ones((2, 4, 8)), "dt": jnp.ones((2, 4)), "A": -jnp.ones((4,)), "D": None}
    operands |= {name: jnp.ones((2, 2, size)) for name in "BC"} | {"states": jnp.ones((3, 4, 8, size))}
    return ssd(**(operands | _rows() | changed))


def test_misfits_are_named() -> None:
    with pytest.raises(ValueError, match=r"states \(3, 8, 4\) do not fit weight \(8, 4\)"):
        _conv(states=jnp.ones((3, 8, 4)))
    with pytest.raises(ValueError, match="activation='gelu'"):
        _conv(activation="gelu")
    with pytest.raises(ValueError, match="fresh is int32 and must be bool"):
        _conv(fresh=jnp.zeros((2,), jnp.int32))
    with pytest.raises(ValueError, match="disagree about the rows"):
        _scan(**_rows(3), decode=True)
    with pytest.raises(ValueError, match=r"dt \(2, 1\) must be \(2, 8\)"):
        _scan(dt=jnp.ones((2, 1)))
    with pytest.raises(ValueError, match="states are bfloat16 and must be float32"):
        _scan(states=jnp.ones((3, 8, 4), jnp.bfloat16))
    with pytest.raises(ValueError, match="4 heads do not share 3 groups evenly"):
        _dual(B=jnp.ones((2, 3, 4)), C=jnp.ones((2, 3, 4)))
    with pytest.raises(ValueError, match=r"C \(2, 1, 4\) must be \(2, 2, 4\)"):
        _dual(C=jnp.ones((2, 1, 4)))


def test_kernels_decline_what_they_cannot_serve() -> None:
    pytest.importorskip("jax_triton")
    with choose.using("triton"):
        with pytest.raises(NotImplementedError, match="20 taps are over a tile's 16 tokens"):
            _conv(states=jnp.ones((3, 8, 19)), weight=jnp.ones((8, 20)))
        with pytest.raises(NotImplementedError, match="a state of 300 is over 256"):
            _scan(size=300)
        with pytest.raises(NotImplementedError, match="heads of 8 with states of 300 are over 256 and 256"):
            _dual(size=300)
        with pytest.raises(NotImplementedError, match="must be one float type"):
            _dual(B=jnp.ones((2, 2, 4), jnp.bfloat16))
