#!/usr/bin/env bash
# Generates the gRPC stubs and their type stubs from protos/ into the package, or into the folder given.
#
# The generated modules import each other by their place in the package. Their checks of the protobuf and grpcio
# they were generated with are dropped: pyproject.toml states what they run with, protobuf 6 included.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$(realpath -m "${1:-jaxllm/server/grpc/stubs}")
python=${PYTHON:-.venv/bin/python}
plugins=$(dirname "$("$python" -c 'import sys; print(sys.executable)')")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m grpc_tools.protoc -Iprotos \
  --plugin=protoc-gen-mypy="$plugins/protoc-gen-mypy" --plugin=protoc-gen-mypy_grpc="$plugins/protoc-gen-mypy_grpc" \
  --python_out="$work" --grpc_python_out="$work" --mypy_out=quiet:"$work" --mypy_grpc_out=quiet:"$work" \
  protos/jaxllm/v1/jaxllm.proto

mkdir -p "$target"
touch "$target/__init__.py"
for file in "$work"/jaxllm/v1/*; do
  sed -e 's/from jaxllm\.v1 import/from jaxllm.server.grpc.stubs import/' \
      -e '/^_runtime_version.ValidateProtobufRuntimeVersion($/,/^)$/d' \
      -e '/import runtime_version as _runtime_version$/d' \
      -e '/^GRPC_GENERATED_VERSION = /,/^    )$/d' \
      -e 's/ignore\[misc, type-arg\]/ignore[misc]/' \
      -e '/^import warnings$/d' -e '/^GRPC_GENERATED_VERSION: str$/d' -e '/^GRPC_VERSION: str$/d' \
      "$file" >"$target/$(basename "$file")"
done
