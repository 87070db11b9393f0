"""`fastrl plan`: what a run will take, in GiB by part, and which paths will run, before any weight is loaded.

Training and sampling take turns, so the peak is the larger of: what always stays (weights, masters, optimizer states,
a reference model, vLLM's cache) with the gradients and one micro-batch or an optimizer step, or with what the embedded
sampler needs; on CUDA with a reserve. With several ranks (FSDP2, one engine each) everything is per rank. The copy that
a checkpoint is written from and what is offloaded are in CPU memory: they count where the run is there too. A frozen
base with adapters has gradients, masters and states of the adapters alone.
"""

import os
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from fastrl.config import TrainConfig
from fastrl.config_checks import check_ranks, check_train
from fastrl.kernels import choose
from fastrl.lengths import longest_sequence
from fastrl.policy.attention import AttentionChoice, choose_attention
from fastrl.policy.footprint import Footprint, footprint, storageless_model
from fastrl.policy.loading import context_of, load_architecture, load_tokenizer, resolve_device, resolve_dtype
from fastrl.policy.lora import check_lora, check_targets
from fastrl.policy.optimizer import check_weights
from fastrl.prompts import without_overlong
from fastrl.sampling.choose import choose_sampler
from fastrl.sampling.kv_budget import (
    BLOCK_TOKENS,
    CUDA_RESERVE_BYTES,
    SLACK_BLOCKS,
    available_bytes,
    bytes_per_token,
    served_bytes,
)
from fastrl.tasks import load_task

GIB = 1 << 30
# Of what training computes on CUDA, for the allocator's own blocks. Qwen3-0.6B, 16 × 1024 tokens a micro-batch, on an
# H100: 43.8 GiB allocated at most where 42.0 are predicted without it.
ALLOCATOR_SHARE = 0.05
LOGITS_COPIES = 32  # bytes per (sequence, vocabulary entry) of the embedded sampler: fp32 logits, scores, CDF in fp64


@dataclass(frozen=True)
class Plan:
    """Bytes by part on each rank, and the paths. fitting_tokens: largest micro_batch_tokens for `memory`; 0: none.

    filled_tokens: what a micro-batch can hold, the budget or all that an update has. reserve: what the device needs
    besides tensors. checkpoint: bytes of CPU memory on the first rank, whatever the device. unsharded: the whole model,
    which the embedded sampler gathers from shards. is_offloaded: training's static part and the reference are in CPU
    memory beside a GPU.
    """

    training: Footprint
    reference: int
    sampler_weights: int
    unsharded: int
    kv_cache: int
    sampler_logits: int
    checkpoint: int
    reserve: int
    memory: int
    filled_tokens: int
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
        cache = self.kv_cache if self.keeps_kv_cache else 0
        return reference + self.sampler_weights + checkpoint + cache + self.reserve

    @property
    def peak(self) -> int:
        t = self.training
        cache = 0 if self.keeps_kv_cache else self.kv_cache
        sampling = self.unsharded + cache + self.sampler_logits - (0 if self.is_offloaded else t.gradients)
        return self.static + max(t.computing, t.update, sampling) + self.resident

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
    config = check_train(config)
    if num_ranks < 1:
        raise ValueError(f"there must be at least 1 rank, not {num_ranks}")
    check_ranks(config, num_ranks)
    check_lora(config.model)
    device, dtype = planned_device(config, device_type)
    check_weights(config.optimizer.kind, dtype)
    memory = int(memory_gib * GIB) or detected_memory(device)
    architecture = load_architecture(config.model)
    if config.model.lora_rank:
        check_targets(config.model, architecture)
    attention = choose_attention(config.model.attention, device, dtype, architecture)
    sequence_tokens = _longest_sequence(config, architecture, prompt_tokens)
    sampler, sampler_reason = choose_sampler(config.sampler, device)
    is_vllm, filled = sampler == "vllm", filled_tokens(config, sequence_tokens)
    is_sharded = num_ranks > 1 or config.optimizer.offload
    is_offloaded = config.optimizer.offload and device.type != "cpu"
    with storageless_model(architecture, dtype, attention, config.model) as model:
        training = footprint(model, filled, sequence_tokens, device.type, config.optimizer, num_ranks)
        larger = footprint(model, 2 * filled, sequence_tokens, device.type, config.optimizer, num_ranks)
        wish = _kv_cache_bytes(config, model, sequence_tokens, is_vllm=is_vllm)
        vocab = model.get_output_embeddings().weight.shape[0]
        whole = sum(p.numel() * p.element_size() for p in model.parameters())
        exported = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
        served = served_bytes(config.sampler.weights, model, dtype, is_sharded=is_sharded) if is_vllm else 0
    has_reference = config.algorithm.kl_coef and not config.model.lora_rank  # the base is the reference of its adapters
    kv_cache, is_on_cuda = wish, device.type == "cuda"
    if is_vllm and not config.sampler.kv_cache_bytes:  # as the run will cut it
        static = 0 if is_offloaded else training.static
        kv_cache = min(wish, available_bytes(device, memory, memory - static - served))
    keeps_kv_cache = is_vllm and not config.sampler.release_kv_cache
    masters = training.weights if is_sharded else training.masters
    plan = Plan(
        training,
        training.weights if has_reference else 0,  # sharded as the policy is
        served,
        whole if is_sharded and not is_vllm else 0,
        kv_cache,
        0 if is_vllm else LOGITS_COPIES * vocab * _sampled_at_once(config),
        exported + masters + training.optimizer,
        CUDA_RESERVE_BYTES + int(ALLOCATOR_SHARE * training.computing) if is_on_cuda else 0,
        memory,
        filled,
        sequence_tokens,
        0,
        _paths(attention, f"{sampler} ({sampler_reason})", device, dtype),
        keeps_kv_cache,
        device.type == "cpu",
        is_offloaded,
        num_ranks,
    )
    spare = memory - plan.static - plan.resident
    per_token = (larger.computing - training.computing) / filled * (1 + ALLOCATOR_SHARE * is_on_cuda)
    fitting = int(filled + (spare - training.computing) / per_token)
    return replace(plan, fitting_tokens=fitting if fitting >= sequence_tokens and training.update <= spare else 0)


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


def _kv_cache_bytes(config: TrainConfig, model: PreTrainedModel, sequence_tokens: int, *, is_vllm: bool) -> int:
    """Of all sequences that are sampled at once, at their longest; vLLM takes whole blocks, or what it was told."""
    if is_vllm and config.sampler.kv_cache_bytes:
        return config.sampler.kv_cache_bytes
    if is_vllm:
        sequence_tokens = (-(-sequence_tokens // BLOCK_TOKENS) + SLACK_BLOCKS) * BLOCK_TOKENS
    return (
        (config.sampler.batch_size if is_vllm else _sampled_at_once(config)) * sequence_tokens * bytes_per_token(model)
    )


def filled_tokens(config: TrainConfig, sequence_tokens: int) -> int:
    """Tokens of the fullest micro-batch: the budget, or all that one update trains on where that is less."""
    batch = config.batch
    num_groups = -(-batch.prompts_per_step // config.algorithm.updates_per_batch)
    return min(batch.micro_batch_tokens, num_groups * batch.rollouts_per_prompt * sequence_tokens)


def _sampled_at_once(config: TrainConfig) -> int:
    """Sequences that the embedded sampler holds: no more than a step draws, unless an evaluation draws more."""
    evaluation, counts = config.evaluation, [config.batch.prompts_per_step * config.batch.rollouts_per_prompt]
    splits = {"validation"} if evaluation.every else set()
    for split in splits | ({evaluation.split} if evaluation.at_end else set()):
        num_problems = getattr(config.task, f"num_{split}") or config.sampler.batch_size  # 0: all, however many
        counts.append(num_problems * evaluation.num_samples)
    return min(config.sampler.batch_size, max(counts))


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
        ("activations", t.activations, f"while training, {plan.filled_tokens} tokens"),
        ("logits chunk and head gradient", t.logits, "while training"),
        ("working memory of the backward", t.working, "while training"),
        ("unsharded blocks and root", t.gathered, "while training"),
        ("optimizer step", t.update, "between micro-batches"),
        ("sampler's weights", plan.sampler_weights, "" if plan.sampler_weights else "none: shared"),
        ("unsharded weights to sample from", plan.unsharded, "while sampling"),
        ("KV cache", plan.kv_cache, cache),
        ("sampler's logits", plan.sampler_logits, "while sampling"),
        ("context, graphs, blocks", plan.reserve, "what the device needs besides tensors"),
        ("checkpoint's copy", plan.checkpoint, "" if plan.is_on_cpu else beside),
    ]
    unneeded = {
        "context, graphs, blocks",
        "unsharded blocks and root",
        "optimizer step",
        "unsharded weights to sample from",
    }
    parts = [part for part in parts if part[1] or part[0] not in unneeded]
    lines = [f"{name + ':':32}{size / GIB:10.3f} GiB  {note}".rstrip() for name, size, note in parts]
    if plan.num_ranks > 1:
        lines.insert(0, f"on each of {plan.num_ranks} ranks:")
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines.append(f"{'peak:':32}{plan.peak / GIB:10.3f} GiB  of {plan.memory / GIB:.3f} GiB: {verdict}")
    if plan.fitting_tokens:
        fit = f"batch.micro_batch_tokens up to {plan.fitting_tokens} fits"
    else:
        fit = f"no batch.micro_batch_tokens fits one sequence of {plan.sequence_tokens} tokens"
    lines.append(f"training on sequences of up to {plan.sequence_tokens} tokens: {fit}")
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in plan.paths.items())])
