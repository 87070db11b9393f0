"""How the served model gets the trainer's weights, and the proof, tensor by tensor, that it has them.

alias: the trainer's parameters *are* rows of vLLM's tensors; publishing an update moves nothing. copy: two sets of
weights, vLLM's own loader in between. (gather, for sharded parameters: `gathered`. LoRA: `adapters`.) A version stamp
says which update is being sampled from, and `prove_fresh` looks at the tensors: their identity (alias), or their bits
(copy).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from fastrl.policy.lora import base_parameters
from fastrl.sampling.protocol import SamplerError, StaleWeightsError
from fastrl.sampling.vllm_engine import Engine
from fastrl.sampling.weights.map import bit_checksum, gaps, is_same_memory, places


class SharedWeights(Protocol):
    """is_exact: whether a silent `prove_fresh` means equality bit for bit. version: the update that is served."""

    is_exact: bool
    version: int

    def publish(self, version: int) -> int:
        """Bring the served weights up to date; the bytes moved."""
        ...

    def prove_fresh(self, version: int) -> None:
        """StaleWeightsError unless the served weights are the trainer's of `version`."""
        ...


class AliasedWeights:
    """One set of weights: `model`'s parameters are re-pointed into the engine's tensors. ValueError when not all can.

    What they held before is freed. The parameter objects stay, so optimizers, tied heads and references never notice.
    """

    is_exact = True

    def __init__(self, engine: Engine, model: nn.Module):
        self.engine, self.model, self.version = engine, model, 0
        parameters, slots = base_parameters(model), engine.slots()
        if found := gaps(parameters, slots):
            raise ValueError(f"{len(found)} gaps in the map of {len(parameters)} parameters: {first_of(found)}")
        for name, place in places(slots).items():
            parameters[name].data = place.view()
        torch.cuda.empty_cache()  # the old weights, which vLLM's allocations do not find in PyTorch's pools
        self.num_tensors = len(parameters)

    def publish(self, version: int) -> int:
        self.version = version
        return 0

    def prove_fresh(self, version: int) -> None:
        check_version(self.version, version)
        parameters, known = base_parameters(self.model), places(self.engine.slots())
        stale = [
            name
            for name in {**parameters, **known}
            if name not in parameters or name not in known or not is_same_memory(parameters[name], known[name].view())
        ]
        if stale:
            raise StaleWeightsError(
                f"{len(stale)} of {len(parameters)} parameters no longer share memory with vLLM's, first {stale[0]}: "
                "something replaced a tensor (`.data =`, `.to()`, a reload, an engine that slept) instead of writing "
                "into it; the sampler would go on with the old values"
            )


class CopiedWeights:
    """Two sets of weights; `publish` copies through vLLM's loader and compares the bits.

    Where rows map one to one the bits are compared tensor by tensor; else by two sums over all of them that no
    reordering changes (Σ b and Σ b² modulo 2⁶⁴ of the values' bit patterns b), if those agree to begin with.
    """

    def __init__(self, engine: Engine, model: nn.Module, say: Callable[[str], None]):
        self.engine, self.model, self.version = engine, model, 0
        _refuse_packed(engine)
        try:
            engine.load_weights(self._weights())
        except SamplerError as error:
            raise ValueError(f"weights of {type(model).__name__} cannot be copied into vLLM: {error}") from error
        self.has_map = not gaps(dict(self._weights()), engine.slots())
        self.is_exact = self.has_map or self._checksums_agree()
        if not self.is_exact:
            say(
                "vLLM holds these weights in another form (quantised, packed or duplicated): their bits cannot be "
                "compared, so only the version stamp and the log-prob probe watch over them"
            )

    def _weights(self) -> list[tuple[str, Tensor]]:
        return [(name, parameter.detach()) for name, parameter in self.model.named_parameters()]

    def publish(self, version: int) -> int:
        weights = self._weights()
        self.engine.load_weights(weights)
        self.version = version
        return sum(w.nbytes for _, w in weights)

    def prove_fresh(self, version: int) -> None:
        check_version(self.version, version)
        if self.has_map:
            found = gaps(dict(self._weights()), self.engine.slots())
            if found:
                raise StaleWeightsError(
                    f"{len(found)} tensors of the sampler differ from the trainer's after the copy, first {found[0]}: "
                    "vLLM's load_weights skipped or changed them"
                )
        elif self.is_exact and not self._checksums_agree():
            raise StaleWeightsError(
                "the bit checksum of the sampler's weights differs from the trainer's after the copy: vLLM's "
                "load_weights skipped or changed some of them"
            )

    def _checksums_agree(self) -> bool:
        ours = [w for _, w in self._weights()]
        theirs = [s.parameter.data[start:end] for s in self.engine.slots() for start, end in s.rows.values()]
        return bit_checksum(ours) == bit_checksum(theirs)


def _refuse_packed(engine: Engine) -> None:
    """ValueError for weights that vLLM computes with in a packed form which `load_weights` does not reach.

    Its CPU back-end packs experts and convolutions after loading; their tensors would look fresh and not be served.
    """
    for slot in engine.slots():
        if slot.parameter.ndim > 2 and slot.parameter.device.type == "cpu":
            raise ValueError(
                f"vLLM's CPU back-end serves a packed copy of {slot.name} {tuple(slot.parameter.shape)}, which updates "
                "do not reach: it cannot follow training; sampler.kind = 'embedded' can"
            )


def check_version(served: int, expected: int) -> None:
    """StaleWeightsError when the served weights carry the stamp of another update."""
    if served != expected:
        raise StaleWeightsError(
            f"the sampler serves weights of version {served}, the trainer is at {expected}: an update was not "
            "published (Sampler.publish) before sampling"
        )


def first_of(found: list[str]) -> str:
    """The first three of the problems found, and how many more there are."""
    return "; ".join(found[:3]) + (f" (and {len(found) - 3} more)" if len(found) > 3 else "")
