"""The policies of a run: the one that is trained, and the one that a KL penalty pulls back to."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fastrl.config.schema import ModelConfig, TrainConfig
from fastrl.kernels import TokenLoss
from fastrl.policy.loading import load_model
from fastrl.policy.lora import attach
from fastrl.policy.model import Policy
from fastrl.policy.sharding import shard
from fastrl.process.ranks import Ranks
from fastrl.process.seeds import seed_of


def trained_policy(
    config: TrainConfig, checkpoint: Path | None, loss: TokenLoss, ranks: Ranks, say: Callable[[str], None]
) -> Policy:
    """The config's model or the checkpoint's; LoRA: the config's, with new adapters or the checkpoint's."""
    model = config.model
    if not model.lora_rank:
        source = replace(model, path=str(checkpoint)) if checkpoint else model
        return _policy(config, source, loss, ranks, say)
    policy = _policy(config, model, loss, ranks, say)
    say(attach(policy.model, model, checkpoint, seed=seed_of(config.run.seed, "lora")))
    return policy


def reference_policy(config: TrainConfig, trained: Policy, say: Callable[[str], None]) -> Policy:
    """A second model, sharded as the trained one is; LoRA: the very policy, to be scored with its adapters off."""
    if config.model.lora_rank:
        return trained
    return _policy(config, config.model, trained.loss, trained.ranks, say)


def _policy(
    config: TrainConfig, source: ModelConfig, loss: TokenLoss, ranks: Ranks, say: Callable[[str], None]
) -> Policy:
    """Loaded, and sharded where there are several ranks or the shards are to live in CPU memory."""
    policy, offload = Policy(load_model(source, say), loss, config.sampler.temperature), config.optimizer.offload
    if ranks.world_size > 1 or offload:
        shard(policy, ranks, offload=offload)
        place = ", in CPU memory" if offload else ""
        say(f"FSDP2: float32 shards on {ranks.world_size} ranks{place}, {policy.dtype} compute")
    return policy
