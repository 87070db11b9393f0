#!/usr/bin/env bash
# Whole iterations on one GPU with vLLM in the process, by phase, beside TRL with vLLM colocated.
#
#   bench/gpu_iteration.sh [OUT] [OPTIONS]     OUT: where gpu_iteration.jsonl, .md and .log go (default bench/results); again to go on
#   bench/gpu_iteration.sh OUT --dry-run       tiny shapes on a CPU, the same code; --sampler embedded without vLLM
#   PYTHON=python3                             the interpreter that has torch, triton, transformers and vLLM
#   SITE=DIR                                   a folder of packages (vLLM among them) that goes on the path first
set -euo pipefail
source "$(dirname "$0")/stage.sh"
out=$root/bench/results
[ $# -gt 0 ] && [ "${1#--}" = "$1" ] && out=$1 && shift
mkdir -p "$out"
"$python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available())'
"$python" "$root/bench/gpu_iteration.py" --out "$out" "$@" 2>&1 | tee -a "$out/gpu_iteration.log"
