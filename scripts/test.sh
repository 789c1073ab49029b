#!/usr/bin/env bash
# Everything a change must pass: format, lint, types, import contracts, tests. No GPU and no network needed
# once .venv is filled. Options go to pytest: bash scripts/test.sh -k scheduler
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare "test,dev"

step() {
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  "$@" </dev/null || fail "$name failed"
  echo "   passed in $((SECONDS - start)) s"
}

step "format" "$python" -m ruff format --check .
step "lint" "$python" -m ruff check .
step "types" "$python" -m mypy
step "import contracts" "$python" -c "from importlinter.cli import lint_imports_command as lint; lint()"
# In the order of the files: the reordered one leaves the slowest, few tests each, for one process at the end.
step "tests" "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "$@"
