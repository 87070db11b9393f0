"""AdamW over fp32 masters: small updates survive bf16 weights, gradients accumulate in fp32, state round-trips."""

import copy

import pytest
import torch
from torch import nn

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.masters import MasterOptimizer


def linear(dtype=torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 4).to(dtype)


def step(module: nn.Module, optimizer: MasterOptimizer, seed: int) -> tuple[float, bool]:
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
    module(inputs.to(next(module.parameters()).dtype)).float().square().mean().backward()
    return optimizer.step()


def test_fp32_matches_torch_adamw():
    ours, theirs = linear(), linear()
    optimizer = MasterOptimizer(ours, OptimizerConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=0.5), 5)
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for seed in range(5):
        norm, has_moved = step(ours, optimizer, seed)
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed))
        theirs(inputs).square().mean().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5).item()
        reference.step()
        reference.zero_grad()
        assert has_moved and norm == pytest.approx(expected, rel=1e-5)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_updates_too_small_for_bf16_add_up_in_the_masters():
    module = linear(torch.bfloat16)
    start = module.weight.detach().clone()
    optimizer = MasterOptimizer(module, OptimizerConfig(lr=1e-5), 1000)
    moved_after = []
    for seed in range(300):
        step(module, optimizer, seed % 7)
        moved_after.append((module.weight != start).float().mean().item())
    assert moved_after[0] < 0.2  # one step is below bf16's resolution for most weights
    assert moved_after[-1] > 0.8
    assert torch.equal(module.weight, optimizer.masters["weight"].to(torch.bfloat16))


def test_gradients_of_bf16_weights_accumulate_in_fp32():
    module = linear(torch.bfloat16)
    MasterOptimizer(module, OptimizerConfig(lr=1e-3), 10)
    (module.weight.float() * 1.0).sum().backward()
    (module.weight.float() * 2.0**-12).sum().backward()
    assert module.weight.grad.dtype == torch.float32
    assert module.weight.grad.unique().tolist() == [1.0 + 2.0**-12]  # bf16 would round the second part away


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_state_round_trips_bitwise(dtype):
    module = linear(dtype)
    optimizer = MasterOptimizer(module, OptimizerConfig(lr=1e-2), 10)
    for seed in range(3):
        step(module, optimizer, seed)
    twin = copy.deepcopy(module)
    twin_optimizer = MasterOptimizer(twin, OptimizerConfig(lr=1e-2), 10)
    state = {name: value.clone() for name, value in optimizer.state_tensors().items()}
    assert any(name.startswith("master.") for name in state) == (dtype != torch.float32)
    twin_optimizer.load_state_tensors(state)
    for seed in range(3, 6):
        step(module, optimizer, seed)
        step(twin, twin_optimizer, seed)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), twin.parameters(), strict=True))


def test_a_nan_gradient_leaves_everything_as_it_was():
    module = linear()
    optimizer = MasterOptimizer(module, OptimizerConfig(lr=1e-2), 10)
    step(module, optimizer, 0)
    before = [p.detach().clone() for p in module.parameters()]
    module(torch.full((2, 8), float("nan"))).sum().backward()
    norm, has_moved = optimizer.step()
    assert norm != norm and not has_moved
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.853553, 0.5, 0.146447]),  # (1 + cos(π·i/4)) / 2 after two steps of warm-up
    ],
)
def test_learning_rate_is_a_function_of_the_step(schedule, expected):
    optimizer = MasterOptimizer(linear(), OptimizerConfig(lr=2.0, schedule=schedule, warmup_steps=2), 6)
    rates = []
    for number in range(1, 7):
        optimizer.start_step(number)
        rates.append(optimizer.lr / 2)
    assert rates == pytest.approx(expected, abs=1e-6)


def test_moments_hold_no_denormals_and_weights_cannot_tell():
    """Rows seen once, and gradients of 1e-20, as improbable tokens of a head get them, for a thousand steps."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 8, generator=generator)
    gradients = torch.cat([torch.full((2, 8), 1e-3), torch.full((1, 8), 1e-20), torch.full((1, 8), 1e-30)])
    module = nn.ParameterDict({"weight": nn.Parameter(start.clone())})
    optimizer = MasterOptimizer(module, OptimizerConfig(lr=1e-3, max_grad_norm=0.0), 10)
    plain = nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([plain], lr=1e-3, weight_decay=0.0, fused=True)
    for step in range(1, 1200):
        for weight in (module["weight"], plain):
            weight.grad = gradients.clone() if step == 1 else torch.cat([torch.zeros(2, 8), gradients[2:]])
        optimizer.step()
        adamw.step()
    state = optimizer.adamw.state[module["weight"]]
    for moment in (state["exp_avg"], state["exp_avg_sq"]):
        assert not ((moment != 0) & (moment.abs() < torch.finfo(torch.float32).tiny)).any()
    assert ((adamw.state[plain]["exp_avg"] != 0) & (adamw.state[plain]["exp_avg"].abs() < 1e-38)).any()
    assert module["weight"].equal(plain)
