"""The optimizer of GPUs, on the CPU's fused kernel: it is the clipping one in fewer passes, and the host waits last."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastrl.config.schema import OptimizerConfig
from fastrl.plan.footprint import LiveBytes
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.optimizer.masters import MasterOptimizer
from fastrl.policy.optimizer.one_pass import OnePassOptimizer

SIZE = 128 * 64


class PassedBytes(TorchDispatchMode):
    """bytes[name]: what each operation reads and writes of tensors with more than one element; order: as they ran."""

    def __init__(self):
        super().__init__()
        self.bytes, self.order = Counter[str](), list[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        self.order.append(name)
        for index, argument in enumerate(func._schema.arguments):
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            is_read = not (is_written and name.startswith(("_foreach_copy", "zero")))
            self.bytes[name] += (is_read + is_written) * large_bytes(value)
        result = func(*args, **kwargs)
        if not any(a.alias_info for a in func._schema.arguments):
            self.bytes[name] += large_bytes(result)
        return result


def large_bytes(value: object) -> int:
    return sum(t.nbytes for t in tree_iter(value) if isinstance(t, Tensor) and t.numel() > 1)


def module_of(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    return nn.ParameterDict({"weight": nn.Parameter(torch.randn(128, 64, generator=generator).to(dtype))})


def give_gradient(module: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    module["weight"].grad = scale * torch.randn(128, 64, generator=generator)


def after(kind: type[Optimizer], limit: float) -> tuple[list[float], Optimizer]:
    """(norms, the optimizer) of three steps with gradients whose norms are near 90."""
    optimizer = kind(module := module_of(), OptimizerConfig(lr=1e-2, weight_decay=0.1, max_grad_norm=limit), 5)
    norms = []
    for seed in range(3):
        give_gradient(module, seed)
        norms.append(optimizer.step()[0])
    return norms, optimizer


@pytest.mark.parametrize("limit", [0.0, 1e4])
def test_without_clipping_it_is_the_clipping_one_bit_for_bit(limit):
    (norms, ours), (expected, theirs) = after(OnePassOptimizer, limit), after(MasterOptimizer, limit)
    assert norms == expected and all(80 < norm < 100 for norm in norms)
    assert all(torch.equal(a, theirs.state_tensors()[name]) for name, a in ours.state_tensors().items())
    assert torch.equal(ours.weights["weight"], theirs.weights["weight"])


def test_clipped_it_differs_by_rounding():
    (norms, ours), (expected, theirs) = after(OnePassOptimizer, 0.5), after(MasterOptimizer, 0.5)
    assert norms == expected
    for name, value in theirs.state_tensors().items():
        torch.testing.assert_close(ours.state_tensors()[name], value, rtol=2e-6, atol=1e-9)
    unclipped = after(OnePassOptimizer, 0.0)[1].state_tensors()["exp_avg.weight"]
    assert ours.state_tensors()["exp_avg.weight"].norm() < 0.01 * unclipped.norm()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_moves_nothing_and_counts_no_step(value):
    optimizer = OnePassOptimizer(module := module_of(), OptimizerConfig(lr=1e-2), 5)
    start = module["weight"].detach().clone()
    give_gradient(module, 0)
    module["weight"].grad[3, 3] = value
    norm, has_moved = optimizer.step()
    assert not has_moved and not norm < float("inf")
    assert torch.equal(module["weight"], start) and module["weight"].grad is None
    assert all(not t.any() for name, t in optimizer.state_tensors().items() if not name.startswith("master"))
    give_gradient(module, 0)
    assert optimizer.step()[1]
    fresh = OnePassOptimizer(other := module_of(), OptimizerConfig(lr=1e-2), 5)
    give_gradient(other, 0)
    fresh.step()
    assert torch.equal(module["weight"], other["weight"])


def test_a_step_is_a_norm_a_fused_pass_and_the_weights_and_the_host_waits_last():
    """Bytes a parameter: 4; 4·4 read and 4·4 written; 4 + 2. Nothing of a parameter's size is made."""
    optimizer = OnePassOptimizer(module := module_of(), OptimizerConfig(lr=1e-2, max_grad_norm=0.5), 5)
    give_gradient(module, 0)
    optimizer.step()  # makes the moments
    give_gradient(module, 1)
    with PassedBytes() as passed, LiveBytes() as live:
        optimizer.step()
    found = {name: size / SIZE for name, size in passed.bytes.items() if size}
    assert found == {"_foreach_norm": 4, "_fused_adamw_": 32, "_foreach_copy_": 6}
    assert live.peak < 100
    assert passed.order.count("_local_scalar_dense") == 1 and passed.order[-1] == "_local_scalar_dense"


@pytest.mark.parametrize(("limit", "num_scalings"), [(0.0, 0), (1e4, 0), (0.5, 1)])
def test_on_cpu_gradients_below_the_limit_are_not_scaled(limit, num_scalings):
    optimizer = MasterOptimizer(module := module_of(), OptimizerConfig(lr=1e-2, max_grad_norm=limit), 5)
    give_gradient(module, 0)
    with PassedBytes() as passed:
        optimizer.step()
    assert passed.order.count("_foreach_mul_") == num_scalings


def test_the_device_of_the_weights_chooses():
    assert type(build_optimizer(module_of(), OptimizerConfig(), 5)) is MasterOptimizer
    assert type(build_optimizer(module_of().to("meta"), OptimizerConfig(), 5)) is OnePassOptimizer
