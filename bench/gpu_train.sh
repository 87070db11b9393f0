#!/usr/bin/env bash
# Training on one GPU at Qwen shapes, beside TRL where it is installed and fits. Under 9 minutes a call; call it again
# until nothing is missing: what OUT/gpu_train.jsonl has is not measured again.
#
#   bench/gpu_train.sh [OUT] [--dry-run]     OUT: where gpu_train.jsonl, .md and the log go (default bench/results)
#   PYTHON=python3                           the interpreter that has torch, triton, transformers (and TRL)
#   SITE=DIR                                 a folder of packages that goes on the path first
#   MINUTES=8.5                              time of this call
set -euo pipefail
source "$(dirname "$0")/stage.sh"
out=$root/bench/results
[ $# -gt 0 ] && [ "$1" != --dry-run ] && out=$1 && shift
mkdir -p "$out"
"$python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available())'
"$python" "$root/bench/gpu_train.py" --out "$out" --minutes "${MINUTES:-8.5}" "$@" 2>&1 | tee -a "$out/gpu_train.log"
