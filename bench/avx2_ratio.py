"""policy_loss against eager with both held to AVX2 (set ATEN_CPU_CAPABILITY=avx2): prints medians in ms as JSON.

ATEN_CPU_CAPABILITY=avx2 python bench/avx2_ratio.py 512 151936
"""

import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import baselines
import torch

from fastrl.kernels import TokenLoss, TokenRows, native, policy_loss


def median_ms(run, logits, num_rounds: int) -> float:
    times = []
    for _ in range(num_rounds + 1):
        fresh = logits.clone().requires_grad_()
        start = time.perf_counter()
        torch.autograd.grad(run(fresh), fresh)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main(num_rows: int, vocab: int) -> None:
    native.force_path("avx2")
    logits = torch.empty(num_rows, vocab, dtype=torch.bfloat16).normal_(0, 3)
    targets, advantages = torch.randint(0, vocab, (num_rows,)), torch.randn(num_rows)
    eager = median_ms(lambda x: baselines.logits_loss(x, targets, advantages)[0], logits, 3)
    ours = median_ms(lambda x: policy_loss(x, TokenRows(targets, advantages), TokenLoss()).loss, logits, 11)
    print(json.dumps({"capability": torch.backends.cpu.get_cpu_capability(), "eager": eager, "native": ours}))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
