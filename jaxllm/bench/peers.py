"""What the engine is measured against: another engine's figures and the card's own limits, as they were measured.

vLLM: 0.25.1 (torch 2.11) on one NVIDIA H200, driver 580.159, 2026-11-23; random bfloat16 weights, greedy, end of text
ignored, prefix caching off, max_model_len 33280, 256 sequences; the best of two runs of the offline API, and its OpenAI
server under the loads of `serving.py`. Floors: the seconds that a workload's bytes and operations take at the
bandwidth and the rate measured on the same card.
"""

from typing import Any

VLLM_SECONDS = {
    "llama-8b": {
        "single": 1.267, "batch8": 0.861, "decode64": 1.721, "mixed256": 10.586, "prefill": 3.171, "long": 10.3,
    },
    "qwen3-0.6b": {
        "single": 0.424, "batch8": 0.248, "decode64": 0.633, "mixed256": 3.269, "prefill": 0.367, "long": 2.692,
    },
    "qwen3-30b-a3b": {
        "single": 1.07, "batch8": 1.301, "decode64": 4.668, "mixed256": 10.369, "prefill": 2.036, "long": 9.67,
    },
}  # fmt: skip
FLOOR_SECONDS = {
    "llama-8b": {"single": 0.90, "batch8": 0.66, "decode64": 1.15, "mixed256": 7.9, "prefill": 2.5, "long": 9.1},
    "qwen3-0.6b": {"single": 0.075, "batch8": 0.075, "decode64": 0.20, "mixed256": 2.4, "prefill": 0.25, "long": 2.4},
    "qwen3-30b-a3b": {"single": 0.40, "batch8": 0.87, "decode64": 3.75, "mixed256": 7.2, "prefill": 1.25, "long": 8.2},
}
VLLM_START_SECONDS = {
    "llama-8b": {"cold": 58.0, "warm": 26.4},
    "qwen3-0.6b": {"cold": 54.8},
    "qwen3-30b-a3b": {"cold": 75.4},
}
VLLM_SERVING: dict[str, dict[str, float]] = {
    "one stream": {"output_tokens_per_s": 206, "ttft_p50_ms": 17, "tpot_p50_ms": 4.8, "gap_p99_ms": 5.4},
    "32 streams": {"output_tokens_per_s": 5512, "ttft_p50_ms": 100, "tpot_p50_ms": 5.6, "gap_p99_ms": 6.4},
    "32 streams and a long prompt": {
        "output_tokens_per_s": 3980, "tpot_p50_ms": 7.77, "gap_p99_ms": 15.2, "gap_max_ms": 394,
    },
    "64 streams": {"output_tokens_per_s": 9333, "ttft_p50_ms": 209, "tpot_p50_ms": 6.05, "gap_p99_ms": 7.8},
    "256 streams": {"output_tokens_per_s": 5385, "ttft_p50_ms": 3222, "tpot_p50_ms": 34.47, "gap_p99_ms": 205.7},
}  # fmt: skip
"""Llama-8B's shape over HTTP, by the names of `serving.LOADS`."""

BANDWIDTH = 4.3e12
"""Bytes a second that a device copy reads and writes on an H200."""
FLOPS = 790e12
"""Operations a second of a bfloat16 matmul of 8,192 cubed on an H200."""


def beside(model: str, workload: str, seconds: float) -> dict[str, Any]:
    """A workload's seconds beside vLLM's and the floor; nothing where there is nothing to compare with."""
    row: dict[str, Any] = {}
    for name, table in (("vllm", VLLM_SECONDS), ("floor", FLOOR_SECONDS)):
        if (other := table.get(model, {}).get(workload)) is not None:
            row |= {f"{name}_seconds": other, f"ratio_to_{name}": seconds / other}
    return row
