"""The models of a run: the policy, the one that a KL penalty pulls it back to, those of signals, a critic."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from transformers import PreTrainedModel

from fastrl.config.schema import TrainConfig
from fastrl.kernels import TokenLoss
from fastrl.policy.critic import Critic
from fastrl.policy.loading import load_for_training
from fastrl.policy.lora import attach
from fastrl.policy.model import Backbone, Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.reduction import reduction_of
from fastrl.policy.sharding import is_sharded, shard
from fastrl.process.memory import device_memory
from fastrl.process.ranks import Ranks
from fastrl.process.seeds import seed_of


def trained_policy(
    config: TrainConfig,
    base: Pretrained,
    checkpoint: Path | None,
    loss: TokenLoss,
    ranks: Ranks,
    say: Callable[[str], None],
) -> Policy:
    """The base model or the checkpoint's. With LoRA: the base with new adapters or the checkpoint's."""
    if not config.model.lora_rank:
        source = Pretrained(replace(config.model, path=str(checkpoint))) if checkpoint else base
        policy = _policy(config, source, loss, ranks, say)
        if is_sharded(policy):
            _choose_reduction(policy, config.optimizer.reduce_every, say)
        return policy
    seed = seed_of(config.run.seed, "lora")
    return _policy(config, base, loss, ranks, say, lambda model: attach(model, config.model, checkpoint, seed=seed))


def _choose_reduction(policy: Policy, setting: Literal["auto", "micro-batch", "update"], say: Callable) -> None:
    count, memory = sum(p.numel() for p in policy.parameters()), device_memory(policy.device)[1]
    policy.reduce_every = reduction_of(setting, count, policy.device, memory, policy.ranks.world_size)
    article = "an" if policy.reduce_every == "update" else "a"
    say(f"gradients are summed over the ranks once {article} {policy.reduce_every}")


def reference_policy(config: TrainConfig, base: Pretrained, trained: Policy, say: Callable[[str], None]) -> Policy:
    """A second model, sharded as the trained one is. With LoRA: the same policy, to be scored with its adapters off."""
    if config.model.lora_rank:
        return trained
    return _policy(config, base, trained.loss, trained.ranks, say)


def second_policies(
    config: TrainConfig, sources: Mapping[str, Pretrained], trained: Policy, say: Callable[[str], None]
) -> dict[str, Policy]:
    """By their role, models that only score, sharded as the trained one is."""
    return {role: _policy(config, source, trained.loss, trained.ranks, say) for role, source in sources.items()}


def _policy(
    config: TrainConfig,
    source: Pretrained,
    loss: TokenLoss,
    ranks: Ranks,
    say: Callable[[str], None],
    adapt: Callable[[PreTrainedModel], str] | None = None,
) -> Policy:
    policy = Policy(load_for_training(source, say, adapt), loss, config.sampler.temperature)
    _place(policy, config, ranks, say)
    return policy


def new_critic(config: TrainConfig, base: Pretrained, ranks: Ranks, say: Callable[[str], None]) -> Critic:
    """On the backbone of the model that the run begins with, sharded as the policy is. Whole, also beside adapters."""
    critic = Critic(load_for_training(base, say))
    _place(critic, config, ranks, say)
    return critic


def _place(model: Backbone, config: TrainConfig, ranks: Ranks, say: Callable[[str], None]) -> None:
    """Shard it where there are several ranks or the shards are to live in CPU memory."""
    offload = config.optimizer.offload
    if ranks.world_size > 1 or offload:
        shard(model, ranks, offload=offload)
        place = ", in CPU memory" if offload else ""
        say(f"FSDP2: float32 shards on {ranks.world_size} ranks{place}, {model.dtype} compute")
