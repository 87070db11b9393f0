"""LoRA: the frozen base is aliased, the adapters go through vLLM's own LoRA path, from memory into its buffers.

Nothing is merged into the shared base. What vLLM multiplies with is A and (α/r)·B, copied after each update and
compared bit for bit, zero where a layer has no adapter or vLLM's rank is larger than ours.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from fastrl.policy.lora import adapters
from fastrl.sampling.protocol import StaleWeightsError
from fastrl.sampling.vllm_engine import Engine
from fastrl.sampling.weights.map import bits
from fastrl.sampling.weights.shared import AliasedWeights


class AdapterWeights:
    """Aliased base and published adapters. ValueError when vLLM cannot take either as it is.

    is_exact: whether α/r is a power of two, so that (α/r)·B is not rounded again.
    """

    def __init__(self, engine: Engine, model: nn.Module):
        self.engine, self.model = engine, model
        self.base = AliasedWeights(engine, model)
        added = adapters(model)
        self.num_layers = len(added)
        self.is_exact = all(math.frexp(adapter.scale)[0] == 0.5 for adapter in added.values())
        self.publish(0)
        if found := self._differences():
            raise ValueError("; ".join(found[:3]))

    @property
    def version(self) -> int:
        return self.base.version

    def _layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        return {name: (adapter.A.detach(), adapter.scaled_B()) for name, adapter in adapters(self.model).items()}

    def publish(self, version: int) -> int:
        layers = self._layers()
        self.engine.load_adapter(layers)
        self.base.publish(version)
        return sum(A.nbytes + B.nbytes for A, B in layers.values())

    def prove_fresh(self, version: int) -> None:
        self.base.prove_fresh(version)
        if found := self._differences():
            raise StaleWeightsError(
                f"the adapters of {len(found)} layers are not the trainer's in the sampler, first {found[0]}: vLLM did "
                "not take over those of the last update, or something changed one side since"
            )

    def _differences(self) -> list[str]:
        """Layers whose adapter in vLLM's buffers is not the trainer's, one line each."""
        layers, served = self._layers(), self.engine.adapter_slots()
        found = [f"{name}: vLLM has no adapter there" for name in layers if name not in served]
        for name, (served_A, served_B) in served.items():
            if name not in layers:
                if served_A.any() or served_B.any():
                    found.append(f"{name}: has an adapter in vLLM alone")
                continue
            A, B = layers[name]
            missing = len(served_A) - len(A)
            if not (_is_equal(pad(A, (0, 0, 0, missing)), served_A) and _is_equal(pad(B, (0, missing)), served_B)):
                found.append(f"{name}: other values in vLLM")
        return found


def _is_equal(a: Tensor, b: Tensor) -> bool:
    """Same shape, dtype and bits."""
    return a.dtype == b.dtype and torch.equal(bits(a), bits(b))
