"""Supervised warm start: the policy loss with A = +1 on given completions, through the same packing and optimizer."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from fastrl.config.checks import check_warmup
from fastrl.config.files import to_toml
from fastrl.config.schema import WarmupConfig
from fastrl.policy.loading import load_for_training, resolve_device, resolve_dtype
from fastrl.policy.micro_batch import num_inputs_R
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.optimizer.choose import build_optimizer, check_optimizer
from fastrl.policy.pretrained import Pretrained
from fastrl.policy.scratch import scratch_model, scratch_tokenizer
from fastrl.process.seeds import seed_of
from fastrl.prompts.lengths import MAX_CHARACTERS_PER_TOKEN
from fastrl.prompts.turns import TurnTokens
from fastrl.records.durable import replacing
from fastrl.records.lock import lock_beside
from fastrl.records.place import check_place
from fastrl.records.progress import open_progress
from fastrl.rollouts import Rollouts
from fastrl.tasks import Problem, load_task
from fastrl.tasks.rows import read_rows

Pair = tuple[str, str | list[str]]  # prompt, completion; of an environment: prompt, [turn, reply, turn, …, turn]
Draw = Callable[[random.Random, int], list[Pair]]  # (generator, count) → pairs
NUM_TRIED = 64  # of a task's own demonstrations are checked before the first step


def _demonstrations(config: WarmupConfig, tokens: TurnTokens) -> Draw:
    """Random demonstrations of the task, or random rows of a file. ValueError names what is missing or does not fit."""
    task = tokens.task
    if config.data.file:
        rows = read_rows(config.data.file, default_split="train")
        for where, row in rows:
            if not (isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)):
                raise ValueError(f"{where}: needs 'prompt' and 'completion' as text, has {sorted(row)}")
        pairs = [(row["prompt"], row["completion"]) for _, row in rows]
        for (where, _), pair in zip(rows, pairs, strict=True):
            _check_demonstration(pair, tokens, config.micro_batch_tokens, where)
        return lambda generator, count: generator.choices(pairs, k=count)
    if task.demonstrations is None:
        raise ValueError(f"task '{config.task.name}' makes no demonstrations; give a file in data.file")
    for pair in task.demonstrations(random.Random(0), NUM_TRIED):
        _check_demonstration(pair, tokens, config.micro_batch_tokens, f"task '{config.task.name}'")
    return task.demonstrations


def _check_demonstration(pair: Pair, tokens: TurnTokens, token_budget: int, where: str) -> None:
    """ValueError for a prompt without tokens, or a demonstration that no micro-batch holds."""
    too_long = f"it does not fit micro_batch_tokens = {token_budget}: raise that, or shorten it"
    num_characters = len(pair[0]) + len("".join(pair[1]))
    if num_characters > MAX_CHARACTERS_PER_TOKEN * token_budget:
        raise ValueError(f"{where}: a demonstration of {num_characters} characters; {too_long}")
    rollout = _rollouts(tokens, [pair])
    if not rollout.prompt_lengths_R[0]:
        raise ValueError(f"{where}: the prompt {pair[0]!r} has no tokens; a model needs one to start from")
    if (num_inputs := num_inputs_R(rollout)[0]) > token_budget:
        raise ValueError(f"{where}: a demonstration of {num_inputs} tokens; {too_long}")


def _model(config: WarmupConfig, source: Pretrained, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The model of model.path, or a new one with random weights. ValueError for tokens that it cannot embed."""
    if not config.model.path:
        return scratch_model(config.scratch, tokenizer, seed_of(config.seed, "weights"))
    source.check_weight_files()
    model = load_for_training(source)
    num_embedded = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_embedded:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens, and the model has embeddings for {num_embedded}")
    return model


def _rollouts(tokens: TurnTokens, pairs: Sequence[Pair]) -> Rollouts:
    """Demonstrations with credit 1 for every token of their completions, replies left out."""
    tokenizer, completions = tokens.tokenizer, [c for _, c in pairs]
    prompts, turns = tokenizer([p for p, _ in pairs]).input_ids, None
    if any(isinstance(completion, list) for completion in completions):
        ids, turns = zip(*(_conversation(tokens, *pair) for pair in pairs), strict=True)
    else:
        ends = [tokenizer.eos_token_id]
        ids = [[*row, *ends] for row in tokenizer(completions, add_special_tokens=False).input_ids]
    rollouts = Rollouts.of(prompts, ids, turns=turns)
    return replace(rollouts, credits_N=np.ones(rollouts.num_tokens, dtype=np.float32))


def _conversation(tokens: TurnTokens, prompt: str, pieces: list[str]) -> tuple[list[int], list[int]]:
    """(tokens, number of the turn of each as in `Rollouts.turns_N`); a turn without a stop text ends its sequence."""
    ids, turns, turn = [], [], []
    for number, piece in enumerate(pieces):
        if number % 2:
            new, _ = tokens.reply(Problem("", prompt, {}), turn, piece)
        else:
            new = turn = tokens.written(piece)
        ids += new
        turns += [number // 2 + 1 if number % 2 == 0 else -(number // 2 + 1)] * len(new)
    return ids, turns


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
    source = Pretrained(config.model)
    tokenizer = source.tokenizer if config.model.path else scratch_tokenizer(config.scratch)
    tokens = TurnTokens(load_task(config.task, splits=()), tokenizer, [tokenizer.eos_token_id])
    draw = _demonstrations(config, tokens)
    model = _model(config, source, tokenizer)
    policy = Policy(model)
    optimizer = build_optimizer(policy, config.optimizer, config.data.num_steps)
    generator = random.Random(seed_of(config.seed, "demonstrations"))
    with open_progress(config.data.num_steps) as progress:
        for step in range(1, config.data.num_steps + 1):
            optimizer.start_step(step)
            pairs = draw(generator, config.data.batch_size)
            loss = _supervised_step(policy, optimizer, _rollouts(tokens, pairs), config)
            if step % 50 == 0 or step == config.data.num_steps:
                progress.message(f"step {step}/{config.data.num_steps}  loss {loss:.4f}  lr {optimizer.lr:.2e}")
    with replacing(output) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
        (draft / "warmup.toml").write_text(to_toml(config))
    return output


def _supervised_step(policy: Policy, optimizer: Optimizer, rollouts: Rollouts, config: WarmupConfig) -> float:
    """One optimizer step on the token mean; returns the loss in nats per token."""
    weights_R, total = np.full(len(rollouts), 1.0 / int(rollouts.loss_tokens_R.sum())), 0.0
    for members in policy.cut(rollouts, config.micro_batch_tokens):
        loss = policy(policy.micro_batch(rollouts.take(members), weights_R[members])).loss
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total
