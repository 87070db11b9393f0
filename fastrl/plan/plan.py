"""`fastrl plan`: what a run will take, in GiB by part, and which paths will run, before any weight is loaded.

Training and sampling take turns. The peak is what always stays (weights, masters, optimizer states, second models,
vLLM's cache) plus the larger of two: the gradients and a micro-batch or an optimizer step; or what the embedded sampler
needs. A micro-batch is as large as the sequences of one update can make it, at their longest. On CUDA a reserve
stands for what no tensor shows (`reserved_bytes`). With several ranks (FSDP2, one engine each) everything is per rank.
The copy that a checkpoint is written from and what is offloaded are in CPU memory: they count where the run is there
too. A frozen base with adapters has gradients, masters and states of the adapters alone.

Measured on an H100 (torch 2.11, Qwen3-0.6B, 16 sequences of 256 + 768 tokens a micro-batch, no engine), when norms kept
float32 copies: 43.8 GiB of tensors, as predicted. Without these copies 35.0 are predicted, 33.2 where torch's
varlen_attn groups queries (2.12); neither was measured.
"""

from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from fastrl.config.checks import check_ranks, check_train, signal_models
from fastrl.config.schema import TrainConfig
from fastrl.kernels import choose
from fastrl.learners.choose import learner_classes
from fastrl.plan.flops import ModelShape
from fastrl.plan.footprint import Footprint, critic_bytes, footprint, num_bytes, storageless_model
from fastrl.plan.workload import Workload, workload
from fastrl.policy.lora import check_lora, check_targets
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.reduction import reduction_of
from fastrl.process.memory import device_memory
from fastrl.sampling.kv_budget import (
    MOST_SEQUENCES,
    available_bytes,
    bytes_per_token,
    cache_dtype,
    reserved_bytes,
    sequence_bytes,
    served_bytes,
)

GIB = 1 << 30
LOGITS_COPIES = 32  # bytes per (sequence, vocabulary entry) of the embedded sampler: fp32 logits, scores, CDF in fp64


@dataclass(frozen=True)
class Plan:
    """Bytes by part on each rank.

    work: what the run does, and where, with the settings that it chooses itself. second_models: weights of the KL
    penalty's reference and of the models that signals need. learners: what signals train: weights, masters, optimizer
    states, and gradients where they exceed the policy's, with which they take turns. unsharded: the whole model, which
    the embedded sampler gathers from shards. checkpoint: CPU memory of the first rank, whatever the device.
    fitting_tokens: the largest micro-batch for `memory`; 0 if none fits.
    """

    work: Workload
    training: Footprint
    second_models: int
    learners: int
    sampler_weights: int
    unsharded: int
    kv_cache: int
    sampler_logits: int
    checkpoint: int
    memory: int
    reserve: int
    shape: ModelShape
    fitting_tokens: int = 0

    @property
    def has_whole_gradients(self) -> bool:
        """Whether each rank keeps gradients of the whole model, though its parameters are sharded."""
        return self.work.is_sharded and self.work.config.optimizer.reduce_every == "update"

    @property
    def static(self) -> int:
        """Bytes of training that stay on the device between micro-batches."""
        return 0 if self.work.is_offloaded else self.training.static

    @property
    def resident(self) -> int:
        """Bytes besides training that stay through both phases."""
        checkpoint = self.checkpoint if self.work.is_on_cpu else 0
        models = 0 if self.work.is_offloaded else self.second_models + self.learners
        return models + self.sampler_weights + checkpoint + (self.kv_cache if self.work.keeps_kv_cache else 0)

    @property
    def peak(self) -> int:
        t = self.training
        cache = 0 if self.work.keeps_kv_cache else self.kv_cache
        sampling = self.unsharded + cache + self.sampler_logits - (0 if self.work.is_offloaded else t.gradients)
        return self.static + max(t.computing, t.update, sampling) + self.resident + self.reserve

    @property
    def spare(self) -> int:
        """Bytes that are left for a micro-batch or an optimizer step."""
        return self.memory - self.static - self.resident - self.reserve

    @property
    def fits(self) -> bool:
        return self.peak <= self.memory


def make_plan(
    config: TrainConfig,
    *,
    device_type: str = "",
    memory_gib: float = 0.0,
    prompt_tokens: int = 0,
    num_ranks: int = 1,
    base: Pretrained | None = None,
) -> Plan:
    """device_type: cpu or cuda; empty: as the run would choose here. memory_gib 0: what this machine's device has.

    prompt_tokens 0: the longest prompt of the task, which loads the task and the tokenizer. num_ranks: processes, each
    with a device of its own. base: config.model where it was read before. ValueError for bad input.
    """
    config, base = _checked(config, num_ranks), base or Pretrained(config.model)
    if config.model.lora_rank:
        check_targets(config.model, base.architecture)
    work = workload(config, base, device_type, prompt_tokens, num_ranks)
    memory = int(memory_gib * GIB) or detected_memory(work.device)
    with storageless_model(base.architecture, work.dtype, work.attention, config.model) as model:
        work = replace(work, config=_with_reduction(work, model, memory))
        plan = _plan(work, model, memory)
        work = replace(work, config=_with_batch_size(plan, model))
        return replace(plan, work=work, fitting_tokens=_fitting_tokens(plan, work, model))


def _with_reduction(work: Workload, model: PreTrainedModel, memory: int) -> TrainConfig:
    """The config with the `reduce_every` that a run of this model on a device of this memory chooses."""
    optimizer, count = work.config.optimizer, sum(p.numel() for p in model.parameters())
    every = reduction_of(optimizer.reduce_every, count, work.device, memory, work.num_ranks)
    return replace(work.config, optimizer=replace(optimizer, reduce_every=every))


def _with_batch_size(plan: Plan, model: PreTrainedModel) -> TrainConfig:
    """The config with as many sequences at once as vLLM's cache holds at their longest, at most what it says."""
    config, sampler = plan.work.config, plan.work.config.sampler
    if not plan.work.is_vllm:
        return config
    one = sequence_bytes(model, plan.work.sequence_tokens, cache_dtype(sampler, plan.work.dtype))
    num_held = max(1, plan.kv_cache // one)
    return replace(config, sampler=replace(sampler, batch_size=min(sampler.batch_size or MOST_SEQUENCES, num_held)))


def _checked(config: TrainConfig, num_ranks: int) -> TrainConfig:
    """The config with its preset applied. ValueError for what cannot be planned because it cannot run."""
    config = check_train(config)
    if num_ranks < 1:
        raise ValueError(f"there must be at least 1 rank, not {num_ranks}")
    check_ranks(config, num_ranks)
    check_lora(config.model)
    return config


def detected_memory(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine. ValueError for cuda where there is none to ask."""
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError("this machine has no CUDA device to ask for its memory: give --memory-gib")
    return device_memory(device)[1]


def _plan(work: Workload, model: PreTrainedModel, memory: int) -> Plan:
    training = _training(work, model, work.micro_batch_tokens)
    weights = work.config.sampler.weights
    served = served_bytes(weights, model, work.dtype, is_sharded=work.is_sharded) if work.is_vllm else 0
    vocabulary = model.get_output_embeddings().weight.shape[0]
    masters = training.weights if work.is_sharded else training.masters
    learners, learners_copy = _learners(work, training.gradients)
    kept = served + (0 if work.is_offloaded else training.static + learners)
    trained = num_bytes(p for p in model.parameters() if p.requires_grad)
    return Plan(
        work=work,
        training=training,
        second_models=(training.weights if work.has_reference else 0) + _signal_models(work),
        learners=learners,
        sampler_weights=served,
        unsharded=num_bytes(model.parameters()) if work.is_sharded and not work.is_vllm else 0,
        kv_cache=_kv_cache_bytes(work, model, memory, kept),
        sampler_logits=0 if work.is_vllm else LOGITS_COPIES * vocabulary * work.num_sampled,
        checkpoint=trained + masters + training.optimizer + learners_copy,
        memory=memory,
        reserve=reserved_bytes(work.device, has_engine=work.is_vllm),
        shape=ModelShape.of(model, cache_dtype(work.config.sampler, work.dtype)),
    )


def _signal_models(work: Workload) -> int:
    """Bytes of the weights that signals ask for beside the policy."""
    total = 0
    for path in signal_models(work.config).values():
        source = Pretrained(replace(work.config.model, path=path, lora_rank=0))
        with storageless_model(source.architecture, work.dtype, work.attention, source.settings) as model:
            count = sum(parameter.numel() for parameter in model.parameters())
        total += 4 * count // work.num_ranks if work.is_sharded else work.dtype.itemsize * count
    return total


def _learners(work: Workload, gradients: int) -> tuple[int, int]:
    """Bytes of the models that signals train, and of their copy in a checkpoint. gradients: the policy's."""
    count = sum(cls.num_backbones for cls in learner_classes(work.config).values())
    if not count:
        return 0, 0
    settings = replace(work.config.model, lora_rank=0)
    with storageless_model(Pretrained(settings).architecture, work.dtype, work.attention, settings) as model:
        weights, kept = critic_bytes(model, work.config.optimizer, work.num_ranks)
    more = max(count * kept.gradients - gradients, 0)
    return count * (weights + kept.masters + kept.states) + more, count * ((kept.masters or weights) + kept.states)


def _training(work: Workload, model: PreTrainedModel, num_tokens: int) -> Footprint:
    """The footprint of training on micro-batches of `num_tokens` tokens."""
    plain = footprint(model, num_tokens, work.sequence_tokens, work.device.type, work.config.optimizer, work.num_ranks)
    return replace(plain, activations=plain.activations - int(num_tokens * (work.left_out or 0)))


def _fitting_tokens(plan: Plan, work: Workload, model: PreTrainedModel) -> int:
    """The largest micro-batch, on the line through this plan's and one of twice its tokens; 0 where none fits."""
    num_tokens, computing = work.micro_batch_tokens, plan.training.computing
    added = _training(work, model, 2 * num_tokens).computing - computing
    fitting = int(num_tokens + (plan.spare - computing) * num_tokens / added)
    return fitting if fitting >= work.sequence_tokens and plan.training.update <= plan.spare else 0


def _kv_cache_bytes(work: Workload, model: PreTrainedModel, memory: int, kept: int) -> int:
    """Bytes for all sequences that are sampled at once, at their longest. vLLM: what the config says, or whole blocks.

    kept: bytes of training and of vLLM's weights, beside which the run cuts vLLM's cache.
    """
    sampler = work.config.sampler
    if not work.is_vllm:
        return work.num_sampled * work.sequence_tokens * bytes_per_token(model)
    if sampler.kv_cache_bytes:
        return sampler.kv_cache_bytes
    one = sequence_bytes(model, work.sequence_tokens, cache_dtype(sampler, work.dtype))
    wanted = (sampler.batch_size or MOST_SEQUENCES) * one
    return min(wanted, available_bytes(work.device, memory, memory - kept))


def paths(work: Workload) -> dict[str, str]:
    """Which device, sampler, attention and kernel will run, and why."""
    surrogate = work.config.algorithm.kernel_surrogate
    return {
        "device": f"{work.device.type}, weights in {str(work.dtype).removeprefix('torch.')}",
        "sampler": f"{work.sampler} ({work.sampler_reason})",
        "attention": f"{work.attention}; an architecture that fails the comparison at load runs padded",
        "blocks": _blocks(work),
        "kernel": str(choose("linear_policy_loss", work.device, work.dtype, surrogate)),
    }


def _blocks(work: Workload) -> str:
    if work.left_out is None:
        return f"not compiled (model.compile = {str(work.config.model.compile).lower()}, {work.device.type})"
    return (
        f"compiled, which keeps {work.left_out:,.0f} bytes a token less; blocks that cannot be compiled run as they are"
    )


def plan_text(plan: Plan) -> str:
    """A table for people."""
    work = plan.work
    lines = [f"on each of {work.num_ranks} ranks:"] if work.num_ranks > 1 else []
    lines += [f"{name + ':':32}{size / GIB:10.3f} GiB  {note}".rstrip() for name, size, note in _parts(plan)]
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines.append(f"{'peak:':32}{plan.peak / GIB:10.3f} GiB  of {plan.memory / GIB:.3f} GiB: {verdict}")
    lines.append(f"training on sequences of up to {work.sequence_tokens} tokens: {_fit(plan)}")
    return "\n".join([*lines, *(f"{name}: {value}" for name, value in paths(work).items())])


def _parts(plan: Plan) -> list[tuple[str, int, str]]:
    """(name, bytes, remark) of each line of the table."""
    t, work = plan.training, plan.work
    beside = "of CPU memory, not counted below"
    place = beside if work.is_offloaded else ""
    parts = [
        ("weights", t.weights, place),
        ("fp32 masters", t.masters, "" if t.masters else "none: the weights are updated themselves"),
        ("optimizer states", t.optimizer, place),
        ("gradients", t.gradients, place or f"while training{', of the whole model' * plan.has_whole_gradients}"),
        ("second models", plan.second_models, place if plan.second_models else "none: no KL penalty but to a base"),
        ("models that signals train", plan.learners, place),
        ("activations", t.activations, f"while training, {work.micro_batch_tokens} tokens"),
        ("logits chunk and head gradient", t.logits, "while training"),
        ("working memory of the backward", t.working, "while training"),
        ("unsharded blocks and root", t.gathered, "while training"),
        ("optimizer step", t.update, "between micro-batches"),
        ("sampler's weights", plan.sampler_weights, "" if plan.sampler_weights else "none: shared"),
        ("unsharded weights to sample from", plan.unsharded, "while sampling"),
        ("KV cache", plan.kv_cache, "stays" if work.keeps_kv_cache else "while sampling"),
        ("sampler's logits", plan.sampler_logits, "while sampling"),
        ("reserve", plan.reserve, "for CUDA's context, graphs and workspaces"),
        ("checkpoint's copy", plan.checkpoint, "" if work.is_on_cpu else beside),
    ]
    unneeded = {"reserve", "unsharded blocks and root", "optimizer step", "unsharded weights to sample from"}
    unneeded |= {"models that signals train"}
    return [part for part in parts if part[1] or part[0] not in unneeded]


def _fit(plan: Plan) -> str:
    if plan.fitting_tokens >= plan.work.update_tokens:
        return f"every batch.micro_batch_tokens fits, one update has at most {plan.work.update_tokens} tokens"
    if plan.fitting_tokens:
        return f"batch.micro_batch_tokens up to {plan.fitting_tokens} fits"
    return f"no batch.micro_batch_tokens fits one sequence of {plan.work.sequence_tokens} tokens"
