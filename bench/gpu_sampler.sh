#!/usr/bin/env bash
# Shared weights on one GPU, with CUDA graphs: alias and copy at two shapes, and vLLM's contract test.
#
#   bench/gpu_sampler.sh [OUT]     OUT: where gpu_sampler.jsonl and the log go (default bench/results)
#   PYTHON=python3                 the interpreter that has torch, triton, transformers and vLLM
#   SITE=DIR                       a folder of packages (vLLM among them) that goes on the path first
#   DEVICE=cpu                     a dry run at a tiny shape, without a GPU
set -euo pipefail
source "$(dirname "$0")/stage.sh"
out=${1:-$root/bench/results}
device=${DEVICE:-cuda}
shapes="qwen3-0.6b qwen3-1.7b"
[ "$device" = cpu ] && shapes=tiny
mkdir -p "$out"
"$python" -c 'import torch, transformers, vllm; print(torch.__version__, transformers.__version__, vllm.__version__)'
for shape in $shapes; do
    for mode in alias copy; do
        "$python" "$root/bench/gpu_sampler.py" --shape "$shape" --mode "$mode" --device "$device" \
            --out "$out/gpu_sampler.jsonl" 2>&1 | tee -a "$out/gpu_sampler.log"
    done
done
if "$python" -c 'import pytest' 2>/dev/null; then
    "$python" -m pytest "$root/tests/test_vllm_contract.py" -q -p no:cacheprovider -c "$root/pyproject.toml" \
        --rootdir "$root" 2>&1 | tee -a "$out/gpu_sampler.log"
fi
