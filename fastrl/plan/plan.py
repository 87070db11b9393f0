"""`fastrl plan`: what a run will take, in GiB by part, and which paths will run, before any weight is loaded.

Training and sampling take turns, so the peak is the larger of: what always stays (weights, masters, optimizer states,
a reference model, vLLM's cache) with the gradients and one micro-batch or an optimizer step, or with what the embedded
sampler needs. A micro-batch is as large as the sequences of one update can make it, at their longest. On CUDA a reserve
stands for what no tensor shows (`reserved_bytes`). With several ranks (FSDP2, one engine each) everything is per rank.
The copy that a checkpoint is written from and what is offloaded are in CPU memory: they count where the run is there
too. A frozen base with adapters has gradients, masters and states of the adapters alone.

Measured on an H100 (torch 2.11, Qwen3-0.6B, 16 sequences of 256 + 768 tokens a micro-batch, no engine): 43.8 GiB of
tensors; predicted 42.0, or 43.8 with the keys and values that torch 2.11's varlen_attn needs repeated.
"""

import math
import os
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from fastrl.config.checks import check_ranks, check_train
from fastrl.config.schema import TrainConfig
from fastrl.kernels import choose
from fastrl.plan.footprint import Footprint, footprint, storageless_model
from fastrl.policy.attention import AttentionChoice, choose_attention
from fastrl.policy.loading import context_of, load_architecture, load_tokenizer, resolve_device, resolve_dtype
from fastrl.policy.lora import check_lora, check_targets
from fastrl.policy.optimizer.choose import check_weights
from fastrl.prompts.lengths import longest_sequence, without_overlong
from fastrl.sampling.choose import choose_sampler
from fastrl.sampling.kv_budget import (
    BLOCK_TOKENS,
    SLACK_BLOCKS,
    available_bytes,
    bytes_per_token,
    reserved_bytes,
    served_bytes,
)
from fastrl.tasks import load_task

GIB = 1 << 30
LOGITS_COPIES = 32  # bytes per (sequence, vocabulary entry) of the embedded sampler: fp32 logits, scores, CDF in fp64


@dataclass(frozen=True)
class Plan:
    """Bytes by part on each rank, and the paths.

    token_budget: batch.micro_batch_tokens; update_tokens: what one update can bring a rank; the largest micro-batch is
    the smaller of both. fitting_tokens: the largest micro-batch for `memory`, 0: none. checkpoint: bytes of CPU memory
    on the first rank, whatever the device. unsharded: the whole model, which the embedded sampler gathers from shards.
    is_offloaded: training's static part and the reference are in CPU memory beside a GPU.
    """

    training: Footprint
    reference: int
    sampler_weights: int
    unsharded: int
    kv_cache: int
    sampler_logits: int
    checkpoint: int
    memory: int
    reserve: int
    token_budget: int
    update_tokens: int
    sequence_tokens: int
    fitting_tokens: int
    paths: dict[str, str]
    keeps_kv_cache: bool
    is_on_cpu: bool
    is_offloaded: bool
    num_ranks: int

    @property
    def static(self) -> int:
        """Bytes of training that stay on the device between micro-batches."""
        return 0 if self.is_offloaded else self.training.static

    @property
    def resident(self) -> int:
        """Bytes besides training that stay through both phases."""
        checkpoint = self.checkpoint if self.is_on_cpu else 0
        reference = 0 if self.is_offloaded else self.reference
        return reference + self.sampler_weights + checkpoint + (self.kv_cache if self.keeps_kv_cache else 0)

    @property
    def peak(self) -> int:
        t = self.training
        cache = 0 if self.keeps_kv_cache else self.kv_cache
        sampling = self.unsharded + cache + self.sampler_logits - (0 if self.is_offloaded else t.gradients)
        return self.static + max(t.computing, t.update, sampling) + self.resident + self.reserve

    @property
    def micro_batch_tokens(self) -> int:
        """Of the largest micro-batch."""
        return min(self.token_budget, self.update_tokens)

    @property
    def fits(self) -> bool:
        return self.peak <= self.memory


def make_plan(
    config: TrainConfig, *, device_type: str = "", memory_gib: float = 0.0, prompt_tokens: int = 0, num_ranks: int = 1
) -> Plan:
    """device_type: cpu or cuda, empty: as the run would choose here. memory_gib 0: what this machine's device has.

    prompt_tokens 0: the longest prompt of the task, which loads the task and the tokenizer. num_ranks: processes, each
    with a device of its own. ValueError for bad input.
    """
    config = _checked(config, num_ranks)
    device, dtype = planned_device(config, device_type)
    check_weights(config.optimizer.kind, dtype)
    memory, budget = int(memory_gib * GIB) or detected_memory(device), config.batch.micro_batch_tokens
    architecture = load_architecture(config.model)
    if config.model.lora_rank:
        check_targets(config.model, architecture)
    attention = choose_attention(config.model.attention, device, dtype, architecture)
    sequence_tokens = _longest_sequence(config, architecture, prompt_tokens)
    sampler, sampler_reason = choose_sampler(config.sampler, device)
    is_vllm = sampler == "vllm"
    update_tokens = _update_tokens(config, sequence_tokens, num_ranks, is_packed=attention.is_packed)
    largest = min(budget, update_tokens)
    is_sharded = num_ranks > 1 or config.optimizer.offload
    is_offloaded = config.optimizer.offload and device.type != "cpu"
    with storageless_model(architecture, dtype, attention, config.model) as model:
        training = footprint(model, largest, sequence_tokens, device.type, config.optimizer, num_ranks)
        larger = footprint(model, 2 * largest, sequence_tokens, device.type, config.optimizer, num_ranks)
        kv_cache = _kv_cache_bytes(config, model, sequence_tokens, num_ranks, is_vllm=is_vllm)
        vocab = model.get_output_embeddings().weight.shape[0]
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        exported = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        served = served_bytes(config.sampler.weights, model, dtype, is_sharded=is_sharded) if is_vllm else 0
    has_reference = config.algorithm.kl_coef and not config.model.lora_rank  # the base is the reference of its adapters
    if is_vllm and not config.sampler.kv_cache_bytes:  # as the run will cut it
        static = 0 if is_offloaded else training.static
        kv_cache = min(kv_cache, available_bytes(device, memory, memory - static - served))
    keeps_kv_cache = is_vllm and not config.sampler.release_kv_cache
    masters = training.weights if is_sharded else training.masters
    plan = Plan(
        training,
        training.weights if has_reference else 0,  # sharded as the policy is
        served,
        whole if is_sharded and not is_vllm else 0,
        kv_cache,
        0 if is_vllm else LOGITS_COPIES * vocab * _sampled_at_once(config, num_ranks),
        exported + masters + training.optimizer,
        memory,
        reserved_bytes(device, has_engine=is_vllm),
        budget,
        update_tokens,
        sequence_tokens,
        0,
        _paths(attention, f"{sampler} ({sampler_reason})", device, dtype),
        keeps_kv_cache,
        device.type == "cpu",
        is_offloaded,
        num_ranks,
    )
    spare = memory - plan.static - plan.resident - plan.reserve
    fitting = int(largest + (spare - training.computing) * largest / (larger.computing - training.computing))
    return replace(plan, fitting_tokens=fitting if fitting >= sequence_tokens and training.update <= spare else 0)


def _checked(config: TrainConfig, num_ranks: int) -> TrainConfig:
    """The config with its preset applied. ValueError for what cannot be planned because it cannot run."""
    config = check_train(config)
    if num_ranks < 1:
        raise ValueError(f"there must be at least 1 rank, not {num_ranks}")
    check_ranks(config, num_ranks)
    check_lora(config.model)
    return config


def planned_device(config: TrainConfig, device_type: str) -> tuple[torch.device, torch.dtype]:
    """(device, dtype of the weights); empty: the device that the run would choose here."""
    device = torch.device(device_type) if device_type else resolve_device(config.model.device)
    return device, resolve_dtype(config.model.dtype, device)


def detected_memory(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine. ValueError for cuda where there is none to ask."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device to ask for its memory: give --memory-gib")
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _longest_sequence(config: TrainConfig, architecture: PreTrainedConfig, prompt_tokens: int) -> int:
    """Prompt and full completion of the longest training sequence. ValueError when they exceed budget or context."""
    new_tokens = config.sampler.max_new_tokens
    limits = {"batch.micro_batch_tokens": config.batch.micro_batch_tokens}
    if context := context_of(architecture):
        limits["the model's context"] = context
    if not prompt_tokens:
        tokenizer = load_tokenizer(config.model)
        task = without_overlong(load_task(config.task), tokenizer, config.task.max_prompt_tokens)
        setting = f"sampler.max_new_tokens={new_tokens}"
        return longest_sequence(
            task, task.train, tokenizer, architecture, limits, use="training", setting=setting, new=new_tokens
        )
    for name, limit in limits.items():
        if prompt_tokens + new_tokens > limit:
            total = prompt_tokens + new_tokens
            raise ValueError(f"the longest prompt and completion make {total} tokens, more than {name}={limit}")
    return prompt_tokens + new_tokens


def _update_tokens(config: TrainConfig, sequence_tokens: int, num_ranks: int, *, is_packed: bool) -> int:
    """What one update can bring a rank: all its sequences at their longest, a group's prompt once where packed."""
    batch, algorithm = config.batch, config.algorithm
    groups = math.ceil(math.ceil(batch.prompts_per_step / algorithm.updates_per_batch) / num_ranks)
    sequences = groups * batch.rollouts_per_prompt
    if not is_packed or algorithm.minibatch_cut == "after-dropping":  # then an update may have one rollout of a group
        return sequences * sequence_tokens
    completion = config.sampler.max_new_tokens
    return groups * (sequence_tokens - completion) + sequences * completion


def _sampled_at_once(config: TrainConfig, num_ranks: int) -> int:
    """Sequences that the embedded sampler draws together: of a step, or of an evaluation, which draws more."""
    batch, evaluation = config.batch, config.evaluation
    drawn = math.ceil(batch.prompts_per_step / num_ranks) * batch.rollouts_per_prompt
    is_evaluated = evaluation.at_end or evaluation.every
    return config.sampler.batch_size if is_evaluated else min(config.sampler.batch_size, drawn)


def _kv_cache_bytes(
    config: TrainConfig, model: PreTrainedModel, sequence_tokens: int, num_ranks: int, *, is_vllm: bool
) -> int:
    """Of all sequences that are sampled at once, at their longest; vLLM takes whole blocks, or what it was told."""
    if is_vllm and config.sampler.kv_cache_bytes:
        return config.sampler.kv_cache_bytes
    if not is_vllm:
        return _sampled_at_once(config, num_ranks) * sequence_tokens * bytes_per_token(model)
    blocks = -(-sequence_tokens // BLOCK_TOKENS) + SLACK_BLOCKS
    return config.sampler.batch_size * blocks * BLOCK_TOKENS * bytes_per_token(model)


def _paths(attention: AttentionChoice, sampler: str, device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    kernel = choose("linear_policy_loss", device, dtype)
    return {
        "device": f"{device.type}, weights in {str(dtype).removeprefix('torch.')}",
        "sampler": sampler,
        "attention": f"{attention}; an architecture that fails the comparison at load runs padded",
        "kernel": f"{kernel.backend} ({kernel.reason})",
    }


def plan_text(plan: Plan) -> str:
    """A table for people."""
    t = plan.training
    beside = "of CPU memory, not counted below"
    place = beside if plan.is_offloaded else ""
    cache = "stays" if plan.keeps_kv_cache else "while sampling"
    parts = [
        ("weights", t.weights, place),
        ("fp32 masters", t.masters, "" if t.masters else "none: the weights are updated themselves"),
        ("optimizer states", t.optimizer, place),
        ("gradients", t.gradients, place or "while training"),
        ("reference model", plan.reference, place if plan.reference else "none: algorithm.kl_coef = 0, or the base"),
        ("activations", t.activations, f"while training, {plan.micro_batch_tokens} tokens"),
        ("logits chunk and head gradient", t.logits, "while training"),
        ("working memory of the backward", t.working, "while training"),
        ("unsharded blocks and root", t.gathered, "while training"),
        ("optimizer step", t.update, "between micro-batches"),
        ("sampler's weights", plan.sampler_weights, "" if plan.sampler_weights else "none: shared"),
        ("unsharded weights to sample from", plan.unsharded, "while sampling"),
        ("KV cache", plan.kv_cache, cache),
        ("sampler's logits", plan.sampler_logits, "while sampling"),
        ("reserve", plan.reserve, "for CUDA's context, graphs and workspaces"),
        ("checkpoint's copy", plan.checkpoint, "" if plan.is_on_cpu else beside),
    ]
    unneeded = {"reserve", "unsharded blocks and root", "optimizer step", "unsharded weights to sample from"}
    parts = [part for part in parts if part[1] or part[0] not in unneeded]
    lines = [f"{name + ':':32}{size / GIB:10.3f} GiB  {note}".rstrip() for name, size, note in parts]
    if plan.num_ranks > 1:
        lines.insert(0, f"on each of {plan.num_ranks} ranks:")
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines.append(f"{'peak:':32}{plan.peak / GIB:10.3f} GiB  of {plan.memory / GIB:.3f} GiB: {verdict}")
    if plan.fitting_tokens >= plan.update_tokens:
        fit = f"every batch.micro_batch_tokens fits, one update has at most {plan.update_tokens} tokens"
    elif plan.fitting_tokens:
        fit = f"batch.micro_batch_tokens up to {plan.fitting_tokens} fits"
    else:
        fit = f"no batch.micro_batch_tokens fits one sequence of {plan.sequence_tokens} tokens"
    lines.append(f"training on sequences of up to {plan.sequence_tokens} tokens: {fit}")
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in plan.paths.items())])
