"""scripts/check_kernels.py on the CPU: it runs what it is asked for and says what agreed."""

import subprocess
import sys
from pathlib import Path

from pallas_kernels.rms_norm.shapes import CASES

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_kernels.py"


def test_a_row_for_each_type() -> None:
    command = [sys.executable, str(SCRIPT), "--only", "rms_norm-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("rms_norm ")]
    assert {(implementation, dtype) for _, implementation, dtype, *_ in rows} == {
        ("reference", "bfloat16"),
        ("reference", "float32"),
    }
    for *_, cases, bad, error, relative, _ in rows:
        assert int(cases) == sum(not case.large for case in CASES)
        assert bad == "0"
        assert 0 < float(relative) <= float(error)
    assert done.stdout.splitlines()[-1] == "all cases agree"
