#!/usr/bin/env bash
# scripts/install.sh PYTHON VENV UV_VERSION REQUIREMENTS
# Makes VENV if it is not there, and installs the pinned REQUIREMENTS and this project into it.
# Quiet: one line says what happens, what the installers say is shown only if they fail.
set -euo pipefail

python=$1 venv=$2 uv_version=$3 requirements=$4
torch_version=$(sed -n 's/^torch==//p' requirements/runtime.txt)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

quietly() {
  "$@" >"$log" 2>&1 && return
  cat "$log" >&2
  printf '\nThe installation failed at: %s\nFix the cause shown above and run make again: it goes on from here.\n' "$*" >&2
  exit 1
}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  found=$("$python" --version 2>&1 || true)
  printf 'Python 3.11 or newer is needed; %s is: %s\nName another one: make PYTHON=/path/to/python3.12 ...\n' "$python" "$found" >&2
  exit 1
fi

# PyTorch's CPU build: a local wheel where pip is told of a folder that has one, else its own
# index. Plain `torch` would pull gigabytes of CUDA packages.
torch=(--torch-backend=cpu)
for folder in ${PIP_FIND_LINKS:-}; do
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  if compgen -G "$folder/torch-$torch_version*-$tag-*.whl" >/dev/null; then
    export UV_FIND_LINKS=$folder
    torch=()
  fi
done

started=$SECONDS
printf 'Installing %s packages into %s/ (pinned in %s; about a minute the first time) ... ' \
  "$(grep -c == "$requirements")" "$venv" "$requirements"
[ -x "$venv/bin/python" ] || quietly "$python" -m venv "$venv"
"$venv/bin/uv" --version 2>/dev/null | grep -q "^uv $uv_version\b" \
  || quietly "$venv/bin/python" -m pip install --quiet "uv==$uv_version"
export VIRTUAL_ENV=$PWD/$venv
quietly "$venv/bin/uv" pip install --quiet "${torch[@]}" -r "$requirements"
quietly "$venv/bin/uv" pip install --quiet --no-deps --no-build-isolation --editable .
printf 'done in %d s.\n' $((SECONDS - started))
