"""LayerNorm of long rows in a short dtype on CPU: its forward to the bit, its gradients in float32."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastrl.config.schema import ModelConfig
from fastrl.policy.layer_norm import Float32SumLayerNorm, sum_layer_norms_in_float32
from fastrl.policy.loading import load_model
from fastrl.policy.pretrained import Pretrained


def relative(ours: torch.Tensor, exact: torch.Tensor) -> float:
    return ((ours.double() - exact).norm() / exact.norm()).item()


def layer_of(width: int, *, has_bias: bool = True) -> nn.LayerNorm:
    torch.manual_seed(0)
    layer = nn.LayerNorm(width, bias=has_bias)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer.bfloat16()


def sums(layer: nn.LayerNorm, x: torch.Tensor, grad: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    return list(torch.autograd.grad(layer(x), [x, *layer.parameters()], grad.to(x.dtype)))


@pytest.mark.parametrize("num_threads", [1, 2, 8])
@pytest.mark.parametrize(("shape", "has_bias"), [((1, 8192, 32), True), ((507, 123), False), ((1, 7), True)])
def test_a_long_row_is_summed_in_float32(shape, has_bias, num_threads):
    """One rounding to bfloat16 is at most 2⁻⁹; the plain layer loses 5 % and more over 8192 rows and one thread."""
    layer, ours = (layer_of(shape[-1], has_bias=has_bias) for _ in range(2))
    sum_layer_norms_in_float32(nn.ModuleList([ours]))
    x, grad = torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16()
    own = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert torch.equal(ours(x), layer(x))
        exact = sums(layer_of(shape[-1], has_bias=has_bias).double(), x.double(), grad)
        plain = sums(layer, x, grad)
        assert all(relative(a, e) <= 2**-8 for a, e in zip(sums(ours, x, grad), exact, strict=True))
    finally:
        torch.set_num_threads(own)
    if shape[1] == 8192 and num_threads == 1:
        assert relative(plain[-1], exact[-1]) > 0.05


def test_float32_gradients_are_not_rounded_on_the_way():
    """As the trainer asks for them, with `grad_dtype`; a frozen weight gets none."""
    layer = layer_of(32)
    sum_layer_norms_in_float32(nn.ModuleList([layer]))
    layer.weight.requires_grad_(False)
    layer.bias.grad_dtype = torch.float32
    grad = torch.randn(1000, 32).bfloat16()
    layer(torch.randn(1000, 32).bfloat16()).backward(grad)
    assert layer.bias.grad.dtype == torch.float32 and layer.weight.grad is None
    assert relative(layer.bias.grad, grad.double().sum(0)) < 1e-6


def test_float32_inputs_take_the_plain_layer():
    layer = layer_of(32).float()
    sum_layer_norms_in_float32(nn.ModuleList([layer]))
    x = torch.randn(9, 32)
    ours, plain = layer(x), F.layer_norm(x, (32,), layer.weight, layer.bias)
    assert torch.equal(ours, plain) and type(ours.grad_fn) is type(plain.grad_fn)


def test_a_loaded_gpt2_has_them_under_its_own_names(family_folder):
    source = ModelConfig(path=str(family_folder("gpt2")), device="cpu", dtype="bfloat16")
    model = load_model(Pretrained(source), lambda _: None)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert len(norms) == 5 and all(type(model.get_submodule(n)) is Float32SumLayerNorm for n in norms)
    assert {f"{name}.bias" for name in norms} <= model.state_dict().keys()
