"""Checks and times the kernels on the machine at hand: python3 scripts/check_kernels.py [--bench] [--sweep --write].

Every implementation of every operation runs over the operation's cases in bfloat16 and float32, on fresh random
operands, against numpy in float64; device memory is filled with NaN beforehand, so that an element nobody wrote
shows. --bench times layers, attention, mixtures, states and filters; --sweep times the configurations of attention,
mixtures and states, and --write enters the best in the operations' tuning tables, which check and bench then use.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from kernels.attention import DECODES, EXTENDS, RAGGED
from kernels.check import check
from kernels.layers import LAYERS
from kernels.mixtures import MIXTURES
from kernels.sampling import FILTERS
from kernels.states import STATES
from kernels.sweeps import SWEEPS


def main() -> int:
    """Returns 0 when every case agrees."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", default="", help="the cases, and sweeps, whose operation-name contains this")
    parser.add_argument("--no-check", action="store_true", help="time without checking")
    parser.add_argument("--bench", action="store_true", help="time the operations that matter most (needs a GPU)")
    parser.add_argument("--sweep", action="store_true", help="time the kernels' configurations first (needs a GPU)")
    parser.add_argument("--write", action="store_true", help="with --sweep: keep the best in the tuning table")
    arguments = parser.parse_args()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}", flush=True)
    if arguments.sweep:
        for sweep in SWEEPS:
            if arguments.only in sweep.name:
                sweep.run(arguments.write)
    good = arguments.no_check or check(arguments.only)
    if arguments.bench:
        print()
        for timing in (*LAYERS, *DECODES, *EXTENDS, *RAGGED, *MIXTURES, *STATES, *FILTERS):
            print(timing.report(), flush=True)
    print("\nall cases agree" if good else "\nSOME CASES FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
