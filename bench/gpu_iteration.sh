#!/usr/bin/env bash
# Whole iterations on one GPU with vLLM in the process: seconds by phase, throughput, peak memory, a profile of a micro-batch.
#
#   bench/gpu_iteration.sh [OUT] [OPTIONS]     OUT: where gpu_iteration.jsonl, the profile and the log go (default bench/results)
#   bench/gpu_iteration.sh OUT --dry-run       a tiny shape on a CPU, the same code
#   PYTHON=python3                             the interpreter that has torch, triton, transformers and vLLM
#   SITE=DIR                                   a folder of packages (vLLM among them) that goes on the path first
set -euo pipefail
source "$(dirname "$0")/stage.sh"
out=$root/bench/results
[ $# -gt 0 ] && [ "${1#--}" = "$1" ] && out=$1 && shift
mkdir -p "$out"
"$python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available())'
"$python" "$root/bench/gpu_iteration.py" --out "$out" "$@" 2>&1 | tee -a "$out/gpu_iteration.log"
