"""The Triton kernels as a Hopper GPU would get them: what the interpreter accepts, the compiler may not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pallas_kernels

_SHARED_MEMORY = 232448  # bytes a program may have on compute capability 9.0


def test_kernels_compile_for_hopper_without_spills(tmp_path: Path) -> None:
    pytest.importorskip("jax_triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(pallas_kernels.__file__).parents[1])}
    script = Path(__file__).with_name("cross_compile.py")
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    attention = {"paged_decode", "paged_extend", "ragged_attention", "mla_decode", "mla_decode_combine"}
    mixture = {"softmax_top_k", "moe_count", "moe_list", "moe_gate_up", "moe_down"}
    recurrent = {"causal_conv", "selective_scan", "ssd_decode", "ssd_pass", "ssd_chunk"}
    sampling = {"sampling_masses", "sampling_bounds", "sampling_candidates", "sampling_threshold"}
    sampling |= {"sampling_groups", "sampling_token"}
    others = {"decode_attention", "qk_norm_rope_kv_write", "kv_write", "latent_write", "rms_norm_residual"}
    assert {entry["kernel"] for entry in found} == attention | mixture | recurrent | sampling | others
    for entry in found:
        assert entry["shared"] <= _SHARED_MEMORY, entry
        assert entry["spilled"] == 0, entry
