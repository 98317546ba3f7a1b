#!/usr/bin/env bash
# scripts/protos.sh write   regenerates forward_ofa_api/ from protos/
# scripts/protos.sh check   fails if forward_ofa_api/ is not what protos/ generates
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
find protos -name '*.proto' -print0 | sort -z | PATH="$PWD/.venv/bin:$PATH" xargs -0 \
  .venv/bin/python -m grpc_tools.protoc -I protos \
  "--python_out=$work" "--grpc_python_out=$work" "--mypy_out=quiet:$work" "--mypy_grpc_out=quiet:$work"

case ${1:-} in
  write)
    rm -rf forward_ofa_api
    mv "$work/forward_ofa_api" forward_ofa_api
    ;;
  check)
    if ! diff -r -q -x __pycache__ "$work/forward_ofa_api" forward_ofa_api; then
      echo 'forward_ofa_api/ is not what protos/ generates: run `make protos`.' >&2
      exit 1
    fi
    ;;
  *)
    sed -n '2,3s/^# //p' "$0" >&2
    exit 2
    ;;
esac
