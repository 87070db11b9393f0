#!/usr/bin/env bash
# Correctness and the whole GPU table in under 9 minutes, on a machine that has torch and triton and nothing of fastrl.
#
#   bench/gpu.sh [OUT]        OUT: where gpu.json, gpu.md and the log go (default bench/results)
#   PYTHON=python3            the interpreter that has torch
#   WHEELS=DIR                peers' wheels, installed from there without an index
set -euo pipefail
source "$(dirname "$0")/stage.sh"
out=${1:-$root/bench/results}
mkdir -p "$out"
if [ -n "${WHEELS:-}" ]; then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$stage/site" "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$stage/site"
fi
"$python" -c 'import torch, triton; print(torch.__version__, triton.__version__, torch.cuda.is_available())'
if "$python" -c 'import pytest' 2>/dev/null; then
    parallel=()
    "$python" -c 'import xdist' 2>/dev/null && parallel=(-n 12)  # most of the time goes into compiling
    timeout 160 "$python" -m pytest "$root/tests/test_triton_gpu.py" "$root/tests/test_triton_launch.py" -q \
        "${parallel[@]}" -p no:cacheprovider -c "$root/pyproject.toml" --rootdir "$root" 2>&1 |
        tee "$out/gpu_tests.log" || { echo "GPU tests failed"; exit 1; }
fi
timeout 390 "$python" "$root/bench/gpu_table.py" --out "$out" --minutes "${MINUTES:-5}" 2>&1 | tee "$out/gpu.log"
