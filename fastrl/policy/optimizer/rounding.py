"""AdamW on bfloat16 weights without masters: torchao computes each update in float32 and rounds it at random.

A weight w lies among values spaced about |w|/128 to |w|/256, and an update δ of a small learning rate is far below
that: rounding to nearest would never move it. Here w + δ between neighbours a < b becomes b with probability
(w + δ − a)/(b − a). The mean moves by δ, and a step adds |δ|·(b − a − |δ|) to an element's variance. The random numbers
come from torch's global generator.

Moments are float32 (`adamw-bf16`) or 8-bit codes with a float32 scale per 256 values (`adamw-8bit`; float32 where a
parameter is smaller than 4096 or no multiple of 256). torchao would keep unquantised moments in bfloat16, where
v += (1 − β₂)(g² − v) with β₂ = 0.999 is mostly below half a spacing: v stops at a third of g², and steps are 1.8 times
too large. torch.compile makes the step: about a second (8 bit: four) on CPU for each new shape of a parameter.
"""

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.adam import _AdamW
from torchao.optim.subclass_8bit import OptimState8bit

from fastrl.config.schema import OptimizerConfig
from fastrl.policy.optimizer.base import Optimizer, adamw_settings

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # name → whether it has a sign


class _Float32Moments(_AdamW):
    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        return super()._new_buffer(p, signed).float()


class _QuantisedMoments(AdamW8bit):
    def _new_buffer(self, p: Tensor, signed: bool) -> Tensor:
        return super()._new_buffer(p, signed).float()  # 8-bit codes stay: only the dtype that they pass for changes


class RoundingOptimizer(Optimizer):
    """kinds `adamw-bf16` and `adamw-8bit`. float32 weights among the bfloat16 ones get exact updates."""

    def _build(self, config: OptimizerConfig) -> torch.optim.Optimizer:
        assert any(weight.dtype == torch.bfloat16 for weight in self.weights.values()), "check_weights lets this pass"
        adamw = {"adamw-bf16": _Float32Moments, "adamw-8bit": _QuantisedMoments}[config.kind]
        return adamw(list(self.weights.values()), **adamw_settings(config), bf16_stochastic_round=True)

    def _norm(self) -> Tensor:
        """As `get_total_norm`, but of bfloat16 gradients a float32 number."""
        gradients = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        if not gradients:
            return torch.zeros(())
        return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, 2, dtype=torch.float32)))

    def _update(self) -> None:
        self.adamw.step()

    def state_tensors(self) -> dict[str, Tensor]:
        """By parameter: `step`, and for each moment its values, or its `_codes` (uint8) and `_scale`."""
        tensors = {}
        for name, weight in self.weights.items():
            for key, value in self.adamw.state[weight].items():
                if isinstance(value, OptimState8bit):
                    tensors |= {f"{key}_codes.{name}": value.codes, f"{key}_scale.{name}": value.scale}
                else:
                    tensors[f"{key}.{name}"] = value
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `state_tensors`. The weights themselves are the model's."""
        for name, weight in self.weights.items():
            if f"step.{name}" in tensors:
                state = {key: self.adamw._new_buffer(weight, signed) for key, signed in MOMENTS.items()}
                for key, moment in state.items():
                    _fill(moment, tensors, key, name)
                self.adamw.state[weight] = {"step": tensors[f"step.{name}"].clone(), **state}


def _fill(moment: Tensor, tensors: dict[str, Tensor], key: str, name: str) -> None:
    if isinstance(moment, OptimState8bit):
        moment.codes.copy_(tensors[f"{key}_codes.{name}"])
        moment.scale.copy_(tensors[f"{key}_scale.{name}"])
    else:
        moment.copy_(tensors[f"{key}.{name}"])


def compiler_problem(device: torch.device) -> str:
    """Why a step cannot be compiled for `device`, on one line; empty where it can. Takes about two seconds."""
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        _Float32Moments([weight], bf16_stochastic_round=True).step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""
