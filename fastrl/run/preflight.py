"""Everything about a run that can be checked before its model is loaded, in the order of what it costs to check."""

from contextlib import ExitStack
from dataclasses import dataclass

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fastrl.config.checks import check_ranks, check_train
from fastrl.config.schema import TrainConfig
from fastrl.policy.loading import (
    check_weight_files,
    context_of,
    load_architecture,
    load_tokenizer,
    resolve_device,
    resolve_dtype,
)
from fastrl.policy.lora import check_lora, check_targets
from fastrl.policy.optimizer.choose import check_optimizer
from fastrl.prompts.lengths import longest_sequence, without_overlong
from fastrl.records.fingerprints import fingerprints
from fastrl.records.metrics import check_sinks
from fastrl.records.run_folder import RunFolder
from fastrl.sampling.choose import choose_sampler
from fastrl.tasks import Task, load_task
from fastrl.tasks.verify import check_reward


@dataclass(frozen=True)
class Preflight:
    """What the checks leave behind for the run. max_sequence_tokens: prompt and completion of the longest sequence."""

    config: TrainConfig
    folder: RunFolder
    task: Task
    tokenizer: PreTrainedTokenizerBase
    max_sequence_tokens: int
    inputs: dict[str, str]  # fingerprints of what the run reads, on the main rank


def check_everything(config: TrainConfig, *, is_resumed: bool, num_ranks: int = 1, is_main: bool = True) -> Preflight:
    """ValueError or OSError with one clear message for a run that cannot work. Nothing is written.

    A run folder that is there is claimed, on the main rank, until `folder.close()`.
    """
    config = check_train(config)
    check_ranks(config, num_ranks)
    check_sinks(config.run.sinks)
    check_lora(config.model)
    with ExitStack() as stack:
        folder = RunFolder(config, is_resumed=is_resumed, is_main=is_main)
        stack.callback(folder.close)
        ready = _check_parts(config, folder, is_main)
        stack.pop_all()
    return ready


def _check_parts(config: TrainConfig, folder: RunFolder, is_main: bool) -> Preflight:
    """Sampler, optimizer, task, reward, tokenizer, lengths."""
    device = resolve_device(config.model.device)
    kind, _ = choose_sampler(config.sampler, device)
    if kind == "vllm" and not config.run.scored_rollouts:
        raise ValueError("run.scored_rollouts = 0: the vllm sampler needs at least 1 for its freshness probe")
    check_optimizer(config.optimizer.kind, resolve_dtype(config.model.dtype, device), device)
    task = load_task(config.task)
    if config.evaluation.every and not task.validation:
        raise ValueError("evaluation.every needs validation problems: set task.validation, or evaluation.every = 0")
    check_reward(task, config.task)
    tokenizer, architecture = load_tokenizer(config.model), load_architecture(config.model)
    check_weight_files(config.model)
    if config.model.lora_rank:
        check_targets(config.model, architecture)
    task = without_overlong(task, tokenizer, config.task.max_prompt_tokens)
    longest = check_prompts(config, task, tokenizer, architecture)
    return Preflight(config, folder, task, tokenizer, longest, fingerprints(config, task, tokenizer) if is_main else {})


def check_prompts(
    config: TrainConfig, task: Task, tokenizer: PreTrainedTokenizerBase, architecture: PreTrainedConfig
) -> int:
    """Tokens of the longest sequence to come: prompt and full completion, in training or in an evaluation.

    ValueError when that exceeds the micro-batch budget or the model's context, or a token the model's vocabulary.
    """
    evaluation, new_tokens = config.evaluation, config.sampler.max_new_tokens
    evaluated_tokens = evaluation.max_new_tokens or new_tokens
    splits = {"validation"} if evaluation.every or config.ledger.every else set()
    splits |= {evaluation.split} if evaluation.at_end else set()
    evaluated = [p for split in splits for p in getattr(task, split)]
    limits = {"batch.micro_batch_tokens": config.batch.micro_batch_tokens}
    if context := context_of(architecture):
        limits["the model's context"] = context
    common = (tokenizer, architecture, limits)
    setting = f"sampler.max_new_tokens={new_tokens}"
    training = longest_sequence(task, task.train, *common, use="training", setting=setting, new=new_tokens)
    setting = f"evaluation.max_new_tokens (0: the sampler's)={evaluated_tokens}"
    return max(
        training, longest_sequence(task, evaluated, *common, use="evaluation", setting=setting, new=evaluated_tokens)
    )
