"""linear_policy_loss on CPU: hidden (N,1024) bf16, V=151936, to loss and both gradients, beside eager and compiled.

Bars on 2 cores at N = 1024 and 4096: at least 2× faster than eager with at most a quarter of its extra memory (inputs,
dX and dW excluded; peak_memory.py, a process each); half of the rows at advantage 0 at least 1.7× faster than none.
The tiny rows are the demo's shape: there the fused path must not lose to the plain reference.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import baselines
import pytest
import torch
from machine import Row

from fastrl.kernels import Head, TokenLoss, TokenRows, linear_policy_loss

VOCAB, WIDTH = 151936, 1024


def make(num_rows: int, vocab: int = VOCAB, width: int = WIDTH, dtype: torch.dtype = torch.bfloat16):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.empty(num_rows, width, dtype=dtype).normal_(generator=generator)
    weight = torch.empty(vocab, width, dtype=dtype).normal_(0, 3 / width**0.5, generator=generator)
    targets = torch.randint(0, vocab, (num_rows,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets, torch.randn(num_rows, generator=generator)


def ours(hidden, weight, targets, advantages):
    result = linear_policy_loss(hidden, Head(weight), TokenRows(targets, advantages), TokenLoss())
    return torch.autograd.grad(result.loss, (hidden, weight))


def eager(hidden, weight, targets, advantages, function=baselines.linear_loss):
    return torch.autograd.grad(function(hidden, weight, targets, advantages)[0], (hidden, weight))


def compiled(*inputs):
    return eager(*inputs, baselines.compiled(baselines.linear_loss))


def half_idle(hidden, weight, targets, advantages):
    return ours(hidden, weight, targets, torch.where(torch.arange(len(advantages)) % 2 == 0, 0.0, advantages))


def check() -> None:
    """Both gradients at least half as exact as eager's against fp64, at a vocabulary of 8192."""
    hidden, weight, targets, advantages = make(96, 8192, 256)
    wide = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    exact_logprobs = torch.log_softmax(wide[0] @ wide[1].t(), -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    exact = torch.autograd.grad(-(advantages.double() * exact_logprobs).sum(), wide)
    for mine, theirs, true in zip(
        ours(hidden, weight, targets, advantages), eager(hidden, weight, targets, advantages), exact, strict=True
    ):
        assert (mine.double() - true).norm() <= 2 * (theirs.double() - true).norm() + 1e-6 * true.norm()


CONTESTANTS = {"eager": eager, "compiled": compiled, "native": ours, "native, half idle": half_idle}


@pytest.mark.parametrize("who", CONTESTANTS)
@pytest.mark.parametrize("num_rows", [1024, 4096])
def test_linear(num_rows, who, request, measure, medians, table) -> None:
    check()
    num_rows = max(16, int(num_rows * request.config.getoption("--scale")))
    inputs = make(num_rows)
    shape = f"{num_rows} × {WIDTH} × {VOCAB} bf16"
    medians[shape, who] = measure("loss + dX + dW", shape, who, CONTESTANTS[who], lambda: inputs, 3)
    pairs = {"native": ["eager", "compiled"], "native, half idle": ["native"]}
    for other in pairs.get(who, []):
        if (shape, other) in medians:
            ratio = f"{medians[shape, other] / medians[shape, who]:.2f}×"
            table.rows.append(Row("ratio", shape, f"{other} / {who}", note=ratio))


@pytest.mark.parametrize("num_rows", [1024, 4096])
def test_extra_memory(num_rows, request, benchmark, table) -> None:
    num_rows = max(16, int(num_rows * request.config.getoption("--scale")))
    script = str(Path(__file__).with_name("peak_memory.py"))

    def peak(who: str) -> int:
        command = [sys.executable, script, who, str(num_rows)]
        environment = os.environ | {"PYTHONSAFEPATH": "1"}
        return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    shape = f"{num_rows} × {WIDTH} × {VOCAB} bf16"
    theirs, mine = benchmark.pedantic(lambda: (peak("eager"), peak("ours")), rounds=1)
    table.rows.append(Row("extra memory", shape, "eager", peak_bytes=theirs))
    table.rows.append(Row("extra memory", shape, "native", peak_bytes=mine, note=f"{mine / theirs:.3f} of eager"))


@pytest.mark.parametrize("who", ["eager", "native"])
@pytest.mark.parametrize("vocab", [20, 200, 1000])
def test_tiny_vocabulary(vocab, who, measure, medians, table) -> None:
    inputs = make(10_000, vocab, 128, torch.float32)
    shape = f"10000 × 128 × {vocab} fp32"
    medians[shape, who] = measure("loss + dX + dW", shape, who, CONTESTANTS[who], lambda: inputs, 15)
    if who == "native" and (shape, "eager") in medians:
        ratio = f"{medians[shape, 'eager'] / medians[shape, who]:.2f}×"
        table.rows.append(Row("ratio", shape, "eager / native", note=ratio))
