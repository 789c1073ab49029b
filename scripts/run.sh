#!/usr/bin/env bash
# Serves a model, asks it something over gRPC, prints the answer as it comes, and shuts the server down.
#
#   bash scripts/run.sh                              the demo model, on this machine's CPU or GPU
#   bash scripts/run.sh --model DIR --dtype bfloat16  options as those of `jaxllm serve`
#   PROMPT="Call me" bash scripts/run.sh             another prompt
#
# Makes .venv and installs what is missing first; JAXLLM_PYTHON=/path/to/python uses that interpreter instead.
set -euo pipefail
set -m # the server gets a process group of its own, so that nothing of it can be left behind
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare ""

server=
output=$(mktemp)
stop() {
  status=$?
  trap - EXIT
  if [[ -n $server ]]; then
    kill -KILL -- "-$server" 2>/dev/null || true
    echo "The server was ended by force." >&2
  fi
  rm -f "$output"
  exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "Starting the server ..."
"$python" -m jaxllm serve --grpc-port 0 --http-port 0 "$@" >"$output" </dev/null &
server=$!
until grep -q '^jaxllm: ready ' "$output"; do
  if ! kill -0 "$server" 2>/dev/null; then
    server=
    fail "the server ended before it was ready; its log is above"
  fi
  sleep 0.1
done
ready=$(grep -m1 '^jaxllm: ready ' "$output")
echo "$ready"
address=${ready#*grpc=}
"$python" scripts/stream_demo.py "${address%% *}" "${PROMPT:-Once upon a time}" </dev/null

echo "Shutting down ..."
kill -TERM "$server"
ended=0
wait "$server" || ended=$?
if kill -0 -- "-$server" 2>/dev/null; then fail "a process of the server outlived it"; fi
server=
if ((ended)); then fail "the server ended with status $ended instead of 0"; fi
echo "Done. Serve it yourself: $python -m jaxllm serve --help"
