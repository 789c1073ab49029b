"""README.md says what the code does: its table of parameters is the code's own."""

import os
import re
import subprocess
import sys
from pathlib import Path

from jaxllm.sampling_params import SamplingParams

ROOT = Path(__file__).parents[1]


def test_the_table_of_parameters_is_current():
    script = ROOT / "scripts/parameter_table.py"
    done = subprocess.run(
        [sys.executable, script, "--check"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^\| `(\w+)` \|.*\|$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert set(SamplingParams.__dataclass_fields__) <= set(rows)
