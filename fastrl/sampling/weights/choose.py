"""Chooses how the served model gets the trainer's weights, and says why."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from fastrl.policy.lora import adapters
from fastrl.policy.sharding import is_sharded
from fastrl.sampling.vllm_engine import Engine
from fastrl.sampling.weights.adapters import AdapterWeights
from fastrl.sampling.weights.gathered import GatheredWeights
from fastrl.sampling.weights.shared import AliasedWeights, CopiedWeights, SharedWeights


def share_weights(
    mode: Literal["auto", "alias", "gather", "copy"],
    engine: Engine,
    model: nn.Module,
    say: Callable[[str], None],
    root: nn.Module | None = None,
) -> SharedWeights:
    """The weights in the mode asked for. auto: gather for sharded parameters, else alias, or copy with the reason said.

    root: the module that FSDP2 took as its root; None: `model`. ValueError when the mode asked for cannot be.
    """
    has_shards = is_sharded(model)
    if adapters(model):
        return _share_adapters(mode, engine, model, say)
    if mode == "auto" and has_shards:
        mode = "gather"
    if (mode == "gather") != has_shards:
        raise ValueError(f"sampler.weights = '{mode}' is for {'whole' if has_shards else 'sharded'} parameters")
    if mode == "gather":
        weights = GatheredWeights(engine, model, root or model)
        say(f"sampler weights: gather, shards of {weights.world_size} processes go straight into vLLM's tensors")
        return weights
    if mode != "copy":
        try:
            weights = AliasedWeights(engine, model)
        except ValueError as error:
            if mode == "alias":
                raise ValueError(f"sampler.weights = 'alias' is not possible: {error}") from None
            say(f"sampler weights: copy, a second set of them; sharing is not possible: {error}")
        else:
            say(f"sampler weights: alias, {weights.num_tensors}/{weights.num_tensors} tensors are vLLM's own")
            return weights
    else:
        say("sampler weights: copy, a second set of them, as asked for by sampler.weights")
    return CopiedWeights(engine, model, say)


def _share_adapters(mode: str, engine: Engine, model: nn.Module, say: Callable[[str], None]) -> AdapterWeights:
    """Let the frozen base be vLLM's own tensors; the adapters are handed over after each update."""
    if mode not in ("auto", "alias"):
        raise ValueError(f"sampler.weights = '{mode}': beside adapters the frozen base is always aliased ('auto')")
    try:
        weights = AdapterWeights(engine, model)
    except ValueError as error:
        raise ValueError(
            f"vLLM cannot serve these adapters: {error}; sampler.kind = 'embedded' does without vLLM"
        ) from None
    say(
        f"sampler weights: {weights.base.num_tensors} frozen tensors are vLLM's own, {weights.num_layers} adapters go "
        "through its LoRA path"
    )
    return weights
