"""Compiles the Triton kernels for compute capability 9.0 on any machine; a JSON line of what ptxas says of each.

A program of its own, since the suite's process has Triton's interpreter in the compiler's place.
"""

import functools
import itertools
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels import choose, tuning
from pallas_kernels.causal_conv import causal_conv
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.kv_write import kv_write
from pallas_kernels.latent_write import latent_write
from pallas_kernels.mla_attention import mla_attention
from pallas_kernels.moe import moe
from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.qk_norm_rope_kv_write import qk_norm_rope_kv_write
from pallas_kernels.ragged_attention import ragged_attention
from pallas_kernels.rms_norm_residual import rms_norm_residual
from pallas_kernels.sampling_draw import sampling_draw
from pallas_kernels.sampling_threshold import sampling_threshold
from pallas_kernels.selective_scan import selective_scan
from pallas_kernels.softmax_top_k import softmax_top_k
from pallas_kernels.ssd import ssd

_PTXAS = Path(triton.__file__).parent / "backends/nvidia/bin/ptxas"
_TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int32": "i32", "uint32": "u32"}


def _compile(
    *operands: Any,
    kernel: Any,
    out_type: Any,
    grid: Any,
    name: str,
    num_warps: int = 4,
    num_stages: int = 3,
    backend_options: dict[str, int] | None = None,
    **constants: Any,
) -> Any:
    """Stands in for jax_triton.triton_call."""
    del grid
    outputs, tree = jax.tree.flatten(out_type)
    pointers = [parameter.name for parameter in kernel.params if not parameter.is_constexpr]
    signature = {parameter.name: "constexpr" for parameter in kernel.params}
    aligned = []
    for pointer, array in zip(pointers, [*operands, *outputs], strict=True):
        if isinstance(array, jax_triton.TensorDescriptor):
            box = ",".join(map(str, array.block_shape))
            signature[pointer] = f"tensordesc<{_TYPES[array.base.dtype.name]}[{box}]>"
            continue
        aligned.append(list(signature).index(pointer))
        dtype = jax.typeof(array).dtype if isinstance(array, jax.Ref) else array.dtype
        signature[pointer] = "*" + _TYPES[dtype.name]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={key: value for key, value in constants.items() if key in signature},
        attrs={(index,): [["tt.divisibility", 16]] for index in aligned},
    )
    options = {"num_warps": num_warps, "num_stages": num_stages, **(backend_options or {})}
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
        ptx.write(compiled.asm["ptx"])
        ptx.flush()
        command = [_PTXAS, "-v", "--gpu-name=sm_90a", ptx.name, "-o", "/dev/null"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {
        "kernel": name,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        "shared": compiled.metadata.shared,
    }
    print(json.dumps(found), flush=True)
    return tree.unflatten([jnp.zeros(output.shape, output.dtype) for output in outputs])


def _moe_by_tma(programs: int, *operands: Any, **options: Any) -> None:
    """moe with TMA, as a tuning table may have it."""
    with tuning.trying("grouped", tma=1, programs=programs):
        moe(*operands, **options)


def _calls() -> list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]]:
    def zeros(*shape: int, dtype: Any = jnp.bfloat16) -> jax.Array:
        return jnp.zeros(shape, dtype)

    def ints(*shape: int) -> jax.Array:
        return jnp.zeros(shape, jnp.int32)

    calls: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []
    per_head = zeros(16, dtype=jnp.float32)
    variants = ({}, {"window": 128, "sinks": per_head}, {"alibi_slopes": per_head, "soft_cap": 30.0})
    for decode, dim, options in (
        *itertools.product((True, False), (64, 128), variants),
        (True, 256, {}),
        (False, 256, {}),
        (True, 64, {"position_bias": zeros(16, 129, dtype=jnp.float32)}),
        (False, 64, {"position_bias": zeros(16, 129, dtype=jnp.float32)}),
        (False, 64, {"causal": False}),
    ):
        pool = zeros(5, 64, 4, dim)
        operands = (zeros(8, 16, dim), pool, pool, ints(8, 9), ints(9), ints(8))
        calls.append((paged_attention, operands, {"scale": 0.1, "decode": decode, **options}))
    for dim, kv_heads, options in (
        (64, 16, {}),
        (64, 16, {"position_bias": zeros(16, 257, dtype=jnp.float32)}),
        (80, 16, {}),
        (128, 4, {"causal": True, "window": 128, "soft_cap": 30.0}),
        (256, 4, {"window": 128}),
    ):
        new = zeros(8, kv_heads, dim)
        calls.append((ragged_attention, (zeros(8, 16, dim), new, new, ints(3)), {"scale": 0.1, **options}))
    for heads in (16, 128):
        operands = (zeros(8, heads, 576), zeros(5, 64, 576), ints(8, 9), ints(9), ints(8))
        calls.append((mla_attention, operands, {"rank": 512, "scale": 0.1, "decode": True}))
    for function, tokens, activation in (
        (moe, 1, "silu"),
        (moe, 512, "clamped_swiglu"),
        (moe, 1024, "silu"),
        (moe, 1, "relu2"),
        (moe, 512, "relu2"),
        (functools.partial(_moe_by_tma, 0), 4096, "silu"),
        (functools.partial(_moe_by_tma, 264), 4096, "relu2"),
    ):
        chosen, weights = ints(tokens, 2), zeros(tokens, 2, dtype=jnp.float32)
        width = 512 if activation == "relu2" else 1024
        operands = (zeros(tokens, 1024), zeros(8, 1024, width), zeros(8, 512, 1024), chosen, weights)
        calls.append((function, operands, {"activation": activation}))
    real = zeros(9, dtype=jnp.bool_)
    for experts, options in ((128, {"top_k": 8}), (256, {"top_k": 8, "norm": None})):
        calls.append((softmax_top_k, (zeros(9, experts, dtype=jnp.float32), real), options))
    new, pool, angles = zeros(8, 4, 128), zeros(5, 64, 4, 128), zeros(8, 64, dtype=jnp.float32)
    norms = {"q_weight": zeros(128), "k_weight": zeros(128)}
    for options in ({}, norms, {"interleaved": True}):
        operands = (zeros(8, 24, 128), angles, angles, pool, pool, ints(8))
        calls.append((qk_norm_rope_kv_write, operands, options))
        operands = (*operands, ints(8, 9), ints(8))
        calls.append((decode_attention, operands, {"scale": 0.1, **options}))
    biased = {"position_bias": zeros(16, 129, dtype=jnp.float32), "scale": 0.1}
    calls.append((decode_attention, operands, biased))
    rows = (ints(8), ints(9), jnp.zeros((8,), bool))
    for decode, tokens in ((True, 8), (False, 512)):
        x, dt, single = zeros(tokens, 640), zeros(tokens, 640, dtype=jnp.float32), zeros(640, dtype=jnp.float32)
        operands = (x, zeros(9, 640, 3), zeros(640, 4), zeros(640), *rows)
        calls.append((causal_conv, operands, {"activation": "silu", "decode": decode}))
        by_place, A = zeros(tokens, 16), zeros(640, 16, dtype=jnp.float32)
        operands = (x, dt, A, by_place, by_place, single, zeros(9, 640, 16, dtype=jnp.float32), *rows)
        calls.append((selective_scan, operands, {"decode": decode}))
        for dim, groups, size in ((64, 1, 128), (128, 2, 256)):
            x, dt, single = zeros(tokens, 8, dim), zeros(tokens, 8, dtype=jnp.float32), zeros(8, dtype=jnp.float32)
            by_place, states = zeros(tokens, groups, size), zeros(9, 8, dim, size, dtype=jnp.float32)
            operands = (x, dt, single, by_place, by_place, single, states, *rows)
            calls.append((ssd, operands, {"decode": decode}))
    for vocabulary in (4097, 151936):
        logits, single = zeros(8, vocabulary, dtype=jnp.float32), zeros(8, dtype=jnp.float32)
        calls.append((sampling_threshold, (logits, single, ints(8), single, single), {}))
        seed = zeros(8, 2, dtype=jnp.uint32)
        calls.append((sampling_draw, (logits, single, single, seed, ints(8), ints(8)), {}))
    calls.append((kv_write, (pool, pool, new, new, ints(8)), {}))
    calls.append((latent_write, (zeros(5, 64, 576), zeros(8, 576), ints(8)), {}))
    calls.append((rms_norm_residual, (zeros(8, 4096), zeros(8, 4096), zeros(4096), 1e-6), {}))
    return calls


if __name__ == "__main__":
    jax_triton.triton_call = _compile
    with choose.using("triton"):
        for function, operands, options in _calls():
            function(*operands, **options)
