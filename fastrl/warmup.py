"""Supervised warm start: the policy loss with A = +1 on given completions, through the same packing and optimizer."""

import random
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastrl.config import WarmupConfig
from fastrl.config_checks import check_warmup
from fastrl.config_files import to_toml
from fastrl.policy.model import Policy, load_model, load_tokenizer, resolve_device, resolve_dtype
from fastrl.policy.optimizer import Optimizer, build_optimizer, check_optimizer
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.records.durable import replacing
from fastrl.records.lock import lock_beside
from fastrl.records.place import check_place
from fastrl.records.progress import Progress
from fastrl.rollouts import Rollout
from fastrl.seeds import seed_of
from fastrl.tasks import load_task
from fastrl.tasks.rows import read_rows

Draw = Callable[[random.Random, int], list[tuple[str, str]]]  # (generator, count) → (prompt, completion) pairs


def _demonstrations(config: WarmupConfig) -> Draw:
    """Random demonstrations of the task, or random rows of a file. ValueError names what is missing."""
    if config.data.file:
        rows = read_rows(config.data.file, default_split="train")
        for where, row in rows:
            if not (isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)):
                raise ValueError(f"{where}: needs 'prompt' and 'completion' as text, has {sorted(row)}")
        pairs = [(row["prompt"], row["completion"]) for _, row in rows]
        return lambda generator, count: generator.choices(pairs, k=count)
    task = load_task(config.task, splits=())
    if task.demonstrations is None:
        raise ValueError(f"task '{config.task.name}' makes no demonstrations; give a file in data.file")
    return task.demonstrations


def _model_and_tokenizer(config: WarmupConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    if config.model.path:
        return load_model(config.model), load_tokenizer(config.model)
    tokenizer = scratch_tokenizer(config.scratch)
    return scratch_model(config.scratch, tokenizer, seed_of(config.seed, "weights")), tokenizer


def _rollout(tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str) -> Rollout:
    completion_ids = [*tokenizer(completion, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    return Rollout(
        prompt_ids=tokenizer(prompt).input_ids,
        completion_ids=completion_ids,
        sampler_logprobs=[0.0] * len(completion_ids),
        finish_reason="stop",
        group=0,
        advantage=1.0,
    )


def warmup(config: WarmupConfig) -> Path:
    """Train on demonstrations and save model and tokenizer; returns the folder."""
    check_warmup(config)
    output = Path(config.output)
    check_place(output, "output")
    with lock_beside(output, "output"):
        check_place(output, "output")
        return _warmup(config, output)


def _warmup(config: WarmupConfig, output: Path) -> Path:
    device = resolve_device(config.model.device)
    dtype = resolve_dtype(config.model.dtype, device) if config.model.path else torch.float32
    check_optimizer(config.optimizer.kind, dtype, device)
    draw = _demonstrations(config)
    model, tokenizer = _model_and_tokenizer(config)
    policy = Policy(model)
    optimizer = build_optimizer(policy, config.optimizer, config.data.num_steps)
    generator = random.Random(seed_of(config.seed, "demonstrations"))
    with Progress(config.data.num_steps) as progress:
        for step in range(1, config.data.num_steps + 1):
            optimizer.start_step(step)
            pairs = draw(generator, config.data.batch_size)
            loss = _supervised_step(policy, optimizer, [_rollout(tokenizer, *pair) for pair in pairs], config)
            if step % 50 == 0 or step == config.data.num_steps:
                progress.message(f"step {step}/{config.data.num_steps}  loss {loss:.4f}  lr {optimizer.lr:.2e}")
    with replacing(output) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "warmup.toml").write_text(to_toml(config))
    return output


def _supervised_step(policy: Policy, optimizer: Optimizer, rollouts: list[Rollout], config: WarmupConfig) -> float:
    """One optimizer step on the token mean; returns the loss in nats per token."""
    weight = 1.0 / sum(r.num_tokens for r in rollouts)
    total = 0.0
    for members in policy.cut(rollouts, config.micro_batch_tokens):
        loss = policy(policy.micro_batch([rollouts[i] for i in members], [weight] * len(members))).loss
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total
