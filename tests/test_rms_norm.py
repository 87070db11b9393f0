"""An RMSNorm that keeps two bytes a value for its backward is transformers' own, bit for bit."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from fastrl.plan.footprint import LiveBytes
from fastrl.policy.rms_norm import InputKeepingRMSNorm, keep_norm_inputs


def norm_of(dtype: torch.dtype, size: int = 48) -> nn.Module:
    norm = Qwen3RMSNorm(size, 1e-6)
    norm.weight.data += torch.randn(size, generator=torch.Generator().manual_seed(1))
    return norm.to(dtype)


def inputs(dtype: torch.dtype, *shape: int, seed: int = 0) -> torch.Tensor:
    scale = torch.logspace(-3, 3, shape[-2]).unsqueeze(-1)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1), (7,), (2, 5), (2, 3, 4), (0,)])
def test_outputs_and_gradients_are_those_of_transformers_bit_for_bit(dtype, shape):
    theirs = norm_of(dtype)
    ours = copy.deepcopy(theirs)
    assert keep_norm_inputs(ours) == 1 and type(ours) is InputKeepingRMSNorm
    x, upstream = inputs(dtype, *shape, 48), inputs(dtype, *shape, 48, seed=2).clamp(-100, 100)
    found = []
    for norm in (ours, theirs):
        x = x.detach().requires_grad_()
        y = norm(x)
        found.append((y, *torch.autograd.grad(y, (x, norm.weight), upstream)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_two_bytes_a_value_are_kept():
    """The input is there before; beside it 4 bytes a row, where transformers keeps 6 a value and the row's 4."""
    x = inputs(torch.bfloat16, 64, 48).requires_grad_()
    theirs = norm_of(torch.bfloat16)
    ours = copy.deepcopy(theirs)
    keep_norm_inputs(ours)
    for norm, expected in ((theirs, 64 * 48 * 6 + 64 * 4), (ours, 64 * 4)):
        with LiveBytes([x, *norm.parameters()]) as live:
            y = norm(x)
            assert live.live - y.nbytes == expected


def test_a_frozen_weight_and_an_input_without_gradient():
    norm = norm_of(torch.bfloat16)
    keep_norm_inputs(norm)
    x = inputs(torch.bfloat16, 5, 48)
    norm(x).sum().backward()
    assert norm.weight.grad.abs().sum() > 0 and x.grad is None
    norm.weight.grad = None
    norm.weight.requires_grad_(False)
    norm(x.requires_grad_()).float().square().sum().backward()
    assert x.grad.abs().sum() > 0 and norm.weight.grad is None


@pytest.mark.parametrize(("family", "num"), [("qwen3", 9), ("llama", 5), ("mistral", 5), ("gemma3", 0), ("gpt2", 0)])
def test_norms_of_other_formulas_and_of_float32_stay(family, num, family_folder):
    """Two blocks and the last norm; Gemma's norm multiplies by 1 + w in float32, GPT-2 has LayerNorms."""
    model = AutoModelForCausalLM.from_pretrained(family_folder(family))
    assert keep_norm_inputs(model.float()) == 0
    names = [name for name, _ in model.named_parameters()]
    assert keep_norm_inputs(model.bfloat16()) == num
    assert names == [name for name, _ in model.named_parameters()]
