"""Sends a running server thousands of requests, right ones and wrong ones, made from its /openapi.json by schemathesis.

    python scripts/fuzz_http.py http://127.0.0.1:8000 --max-examples 30

Every answer must be declared: its status, its type, its form. None may be a 5xx, and what breaks the schema must be
refused. Not asked is that all that fits the schema be taken: what depends on two fields (min_tokens and max_tokens) or
on the model (the context's length, what it is for) no schema says. Ends with schemathesis's exit code.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODEL_VARIABLE = "FUZZ_MODEL"
MAX_TOKENS = 8
"""What a request may draw: the point is what comes in."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="the server's HTTP front")
    parser.add_argument("--model", default="", help="a name that the server answers to; empty is taken by all")
    parser.add_argument("--max-examples", type=int, default=30, help="random requests for each operation")
    parser.add_argument("--seed", type=int, help="a fresh one by default; it is printed")
    parser.add_argument("--fuzzing-only", action="store_true", help="without every border of every field, thousands")
    parser.add_argument("--api-key", help="where the server needs one")
    options = parser.parse_args()
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{options.url}/openapi.json", "--url", options.url),
        *("--max-examples", str(options.max_examples), "--continue-on-failure", "--no-color"),
        *("--phases", "fuzzing" if options.fuzzing_only else "coverage,fuzzing"),
        *("--exclude-checks", "positive_data_acceptance", "--suppress-health-check", "all"),
        *("--request-timeout", "60", "--warnings", "off"),
    ]
    if options.seed is not None:
        command += ["--seed", str(options.seed)]
    if options.api_key:
        command += ["--header", f"authorization:Bearer {options.api_key}"]
    paths = filter(None, (str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH")))
    environment = {
        **os.environ, MODEL_VARIABLE: options.model, "SCHEMATHESIS_HOOKS": Path(__file__).stem,
        "PYTHONPATH": os.pathsep.join(paths),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:  # it leaves notes where it runs
        return subprocess.run(command, cwd=directory, env=environment, check=False).returncode


if "SCHEMATHESIS_HOOKS" in os.environ:  # schemathesis imports this file for what follows
    import schemathesis

    @schemathesis.hook
    def map_body(context: Any, body: Any) -> Any:
        """Ask for the model that is there, and for little: else nearly all requests end at another model's name."""
        if not isinstance(body, dict):
            return body
        if isinstance(body.get("model"), str):
            body["model"] = os.environ[MODEL_VARIABLE]
        for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if type(body.get(name)) is int and body[name] > MAX_TOKENS:
                body[name] = MAX_TOKENS
        return body


if __name__ == "__main__":
    sys.exit(main())
