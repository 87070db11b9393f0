"""The most that a run does at once, on each rank: where it computes, how it samples, and how many tokens meet."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from fastrl.config.schema import TrainConfig
from fastrl.plan.compiled import bytes_left_out
from fastrl.policy.attention import AttentionChoice, choose_attention
from fastrl.policy.compiled import wants_compiled
from fastrl.policy.loading import resolve_device, resolve_dtype
from fastrl.policy.optimizer.choose import check_weights
from fastrl.policy.pretrained import Pretrained
from fastrl.prompts.lengths import longest_sequence, of_training, without_overlong
from fastrl.sampling.choose import choose_sampler
from fastrl.tasks import load_task


@dataclass(frozen=True)
class Workload:
    """What a run does. sequence_tokens: prompt and full completion of the longest training sequence. left_out: bytes a
    token that autograd does not keep because blocks are compiled; None where they are not."""

    config: TrainConfig
    device: torch.device
    dtype: torch.dtype
    attention: AttentionChoice
    sampler: str
    sampler_reason: str
    sequence_tokens: int
    num_ranks: int
    left_out: float | None = None

    @property
    def is_vllm(self) -> bool:
        return self.sampler == "vllm"

    @property
    def keeps_kv_cache(self) -> bool:
        """Whether the KV cache stays while training."""
        return self.is_vllm and not self.config.sampler.release_kv_cache

    @property
    def is_on_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def is_sharded(self) -> bool:
        """Whether parameters are shards: also one rank's that live in CPU memory."""
        return self.num_ranks > 1 or self.config.optimizer.offload

    @property
    def is_offloaded(self) -> bool:
        """Whether training's static part lies in CPU memory beside a GPU."""
        return self.config.optimizer.offload and not self.is_on_cpu

    @property
    def has_reference(self) -> bool:
        """Whether a second model is loaded; adapters have their base as reference."""
        return bool(self.config.algorithm.kl_coef) and not self.config.model.lora_rank

    @cached_property
    def update_tokens(self) -> int:
        """Tokens that one update can bring: its sequences at their longest, a group's prompt once where packed."""
        batch, algorithm = self.config.batch, self.config.algorithm
        num_groups = math.ceil(math.ceil(batch.prompts_per_step / algorithm.updates_per_batch) / self.num_ranks)
        num_sequences = num_groups * batch.rollouts_per_prompt
        if not self.attention.is_packed or algorithm.minibatch_cut == "after-dropping":  # one rollout of each group
            return num_sequences * self.sequence_tokens
        completion = self.config.sampler.max_new_tokens
        return num_groups * (self.sequence_tokens - completion) + num_sequences * completion

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens of the largest micro-batch."""
        return min(self.config.batch.micro_batch_tokens, self.update_tokens)

    @property
    def num_sampled(self) -> int:
        """Sequences that the embedded sampler draws together: of a step, or of an evaluation, which draws more."""
        batch, evaluation, most = self.config.batch, self.config.evaluation, self.config.sampler.batch_size
        num_drawn = math.ceil(batch.prompts_per_step / self.num_ranks) * batch.rollouts_per_prompt
        return most if evaluation.at_end or evaluation.every else min(most, num_drawn)


def workload(config: TrainConfig, base: Pretrained, device_type: str, prompt_tokens: int, num_ranks: int) -> Workload:
    """The workload of a run; arguments as in `make_plan`. ValueError for what the device or the model cannot run."""
    device, dtype = planned_device(config, device_type)
    check_weights(config.optimizer.kind, dtype)
    attention = choose_attention(config.model.attention, device, dtype, base.architecture)
    if attention.path == "flex_attention" and device.type == "cpu":
        raise ValueError("model.attention = 'flex_attention' has no backward on CPU: set it to 'auto'")
    sequence_tokens = _longest_sequence(config, base, prompt_tokens)
    is_compiled = wants_compiled(config.model.compile, device)
    left_out = bytes_left_out(base.architecture, dtype, attention, config.model) if is_compiled else None
    sampler = choose_sampler(config.sampler, device, is_here=not device_type)
    return Workload(config, device, dtype, attention, *sampler, sequence_tokens, num_ranks, left_out)


def planned_device(config: TrainConfig, device_type: str) -> tuple[torch.device, torch.dtype]:
    """(device, dtype of the weights). device_type empty: the device that the run would choose here."""
    device = torch.device(device_type) if device_type else resolve_device(config.model.device)
    return device, resolve_dtype(config.model.dtype, device)


def _longest_sequence(config: TrainConfig, base: Pretrained, prompt_tokens: int) -> int:
    """Tokens of the longest prompt with a full completion. ValueError if they exceed the budget or the context."""
    limits = {"batch.micro_batch_tokens": config.batch.micro_batch_tokens} | base.limits
    if not prompt_tokens:
        task = without_overlong(load_task(config.task), base.tokenizer, config.task.max_prompt_tokens)
        return longest_sequence(task, task.train, base, limits, of_training(config.sampler))
    total = prompt_tokens + config.sampler.max_new_tokens
    for name, limit in limits.items():
        if total > limit:
            raise ValueError(f"the longest prompt and completion make {total} tokens, more than {name}={limit}")
    return total
