"""Which way the served model gets the trainer's weights: one chooser, and it says why."""

from collections.abc import Callable
from typing import Literal

from torch import nn

from fastrl.policy.sharding import is_sharded
from fastrl.sampling.engine import Engine
from fastrl.sampling.gathered import GatheredWeights
from fastrl.sampling.weights import AliasedWeights, CopiedWeights, SharedWeights


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
