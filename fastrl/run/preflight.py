"""Everything about a run that can be checked before its model is loaded, in the order of what it costs to check."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from fastrl.config.algorithm import chosen
from fastrl.config.checks import check_ranks, check_train, signal_models
from fastrl.config.schema import TrainConfig
from fastrl.learning.refiners import REFINERS, NoRefiner
from fastrl.policy.loading import resolve_device, resolve_dtype
from fastrl.policy.lora import check_lora, check_targets
from fastrl.policy.optimizer.choose import check_optimizer
from fastrl.policy.pretrained import Pretrained
from fastrl.prompts.lengths import Completions, longest_sequence, of_training, without_overlong
from fastrl.prompts.stops import Stops, chosen_stops
from fastrl.prompts.turns import TurnTokens
from fastrl.records.fingerprints import fingerprints
from fastrl.records.metrics import check_sinks
from fastrl.records.run_folder import RunFolder
from fastrl.sampling.choose import choose_sampler
from fastrl.sampling.conversations import check_limits
from fastrl.tasks import Problem, Task, load_task
from fastrl.tasks.choose import NOTHING
from fastrl.tasks.given import GivenReward
from fastrl.tasks.reward_rules import trained_by
from fastrl.tasks.verify import check_reward, make_pool


@dataclass(frozen=True)
class Preflight:
    """What the checks leave behind for the run. max_sequence_tokens: prompt and completion of the longest sequence that
    is drawn.
    """

    config: TrainConfig
    folder: RunFolder
    task: Task
    base: Pretrained  # what model.path names
    others: dict[str, Pretrained]  # by their role, models that signals need
    max_sequence_tokens: int
    inputs: dict[str, str]  # fingerprints of what the run reads, on the main rank
    stops: Stops  # what ends completions, besides the end of the sequence


def check_everything(
    config: TrainConfig,
    *,
    is_resumed: bool,
    num_ranks: int = 1,
    is_main: bool = True,
    given: Mapping[str, GivenReward] = NOTHING,
) -> Preflight:
    """ValueError or OSError with one clear message for a run that cannot work. Nothing is written.

    given: rewards that were given as Python objects, by name. A run folder that is there is claimed, on the main rank,
    until `folder.close()`.
    """
    config = check_train(config)
    check_ranks(config, num_ranks)
    check_sinks(config.run.sinks)
    check_lora(config.model)
    with ExitStack() as stack:
        folder = RunFolder(config, is_resumed=is_resumed, is_main=is_main)
        stack.callback(folder.close)
        ready = _check_parts(config, folder, is_main, given)
        stack.pop_all()
    return ready


def _check_parts(config: TrainConfig, folder: RunFolder, is_main: bool, given: Mapping[str, GivenReward]) -> Preflight:
    """Sampler, optimizer, task, reward, model and lengths."""
    _check_device(config)
    task = load_task(config.task, given=given)
    if config.evaluation.every and not task.validation:
        raise ValueError("evaluation.every needs validation problems: set task.validation, or evaluation.every = 0")
    is_environment = check_reward(trained_by(task, config.task.reward), config.task)
    base = Pretrained(config.model)
    tokenizer = base.tokenizer
    stops = chosen_stops(config.sampler, tokenizer)
    if is_environment:
        check_limits(config.task.max_turn_tokens, config.sampler.max_new_tokens)
        TurnTokens(task, tokenizer, [tokenizer.eos_token_id], stops.texts).check(task.train[0])
    base.check_weight_files()
    if config.model.lora_rank:
        check_targets(config.model, base.architecture)
    task = without_overlong(task, tokenizer, config.task.max_prompt_tokens)
    longest = check_prompts(config, task, base) + check_refiner(config, trained_by(task, config.task.reward))
    longest = min([longest, *base.limits.values()])
    others = _second_models(config, base)
    inputs = fingerprints(config, task, base, others) if is_main else {}
    return Preflight(config, folder, task, base, others, longest, inputs, stops)


def _second_models(config: TrainConfig, base: Pretrained) -> dict[str, Pretrained]:
    """ValueError for one that is damaged, or that has another tokenizer than the policy's."""
    found = {}
    for role, path in signal_models(config).items():
        found[role] = other = Pretrained(replace(config.model, path=path, lora_rank=0))
        other.check_weight_files()
        if other.tokenizer.get_vocab() != base.tokenizer.get_vocab():
            raise ValueError(
                f"the {role} '{path}' has another tokenizer than model.path = '{config.model.path}': it cannot score "
                "the policy's tokens"
            )
    return found


def check_refiner(config: TrainConfig, task: Task) -> int:
    """By how many tokens its prompts may be longer than the task's. ValueError for a task that it cannot work with."""
    refiner = chosen(config.algorithm, REFINERS, config.algorithm.refiner)
    if isinstance(refiner, NoRefiner):
        return 0
    refiner.check(task, task.train[0])
    with make_pool(task.reward, config.task) as pool:
        if (unit := pool.unit()) != "completion":
            raise ValueError(
                f"algorithm.refiner = '{config.algorithm.refiner}' judges completions one by one; the reward of task "
                f"'{task.name}' judges {'whole groups' if unit == 'group' else 'conversations'}"
            )
    return refiner.added_tokens(config.sampler.max_new_tokens)


def _check_device(config: TrainConfig) -> None:
    """ValueError for a sampler or an optimizer that cannot run on the model's device."""
    device = resolve_device(config.model.device)
    kind, _ = choose_sampler(config.sampler, device)
    if kind == "vllm" and not config.run.scored_rollouts:
        raise ValueError("run.scored_rollouts = 0: the vllm sampler needs at least 1 for its freshness probe")
    check_optimizer(config.optimizer.kind, resolve_dtype(config.model.dtype, device), device)


def check_prompts(config: TrainConfig, task: Task, base: Pretrained) -> int:
    """Tokens of the longest sequence to come: prompt and full completion, in training or in an evaluation.

    ValueError for a sequence beyond the micro-batch budget or the model's context, and for a token that the model does
    not embed.
    """
    limits = {"batch.micro_batch_tokens": config.batch.micro_batch_tokens} | base.limits
    trained = of_training(config.sampler)
    num_evaluated = config.evaluation.max_new_tokens or config.sampler.max_new_tokens
    evaluated = Completions(
        "evaluation", f"evaluation.max_new_tokens (0: the sampler's)={num_evaluated}", num_evaluated
    )
    return max(
        longest_sequence(task, task.train, base, limits, trained),
        longest_sequence(task, _evaluated_problems(config, task), base, limits, evaluated),
    )


def _evaluated_problems(config: TrainConfig, task: Task) -> list[Problem]:
    evaluation = config.evaluation
    splits = {"validation"} if evaluation.every or config.ledger.every else set()
    splits |= {evaluation.split} if evaluation.at_end else set()
    return [problem for split in splits for problem in getattr(task, split)]
