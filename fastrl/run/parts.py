"""The parts of a run: model, sampler, optimizer, verifier, trainer, evaluator."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from fastrl.evaluation.evaluator import Evaluator
from fastrl.kernels import choose
from fastrl.learners.choose import build_learners
from fastrl.learners.protocol import Learner
from fastrl.learners.states import TrainedStates
from fastrl.policy.model import Policy
from fastrl.policy.optimizer.base import Optimizer
from fastrl.policy.optimizer.bytes import training_bytes
from fastrl.policy.optimizer.choose import build_optimizer
from fastrl.policy.roles import reference_policy, second_policies, trained_policy
from fastrl.process.ranks import Ranks
from fastrl.prompts.stream import PromptStream
from fastrl.records.progress import Progress
from fastrl.run.preflight import Preflight
from fastrl.run.resumption import Beginning
from fastrl.sample_and_judge import Arena
from fastrl.sampling.choose import build_sampler, ignored_settings
from fastrl.sampling.kv_budget import cache_dtype
from fastrl.sampling.probe import LogprobProbe
from fastrl.sampling.protocol import Sampler, SamplerParts
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.reward_rules import trained_by
from fastrl.tasks.verify import make_pool
from fastrl.trainer import Trainer
from fastrl.update import Updater, token_loss


@dataclass(frozen=True)
class Parts:
    """What the steps of a run work with. states: of all that is trained, the optimizer's among them."""

    policy: Policy
    sampler: Sampler
    optimizer: Optimizer
    states: TrainedStates
    updater: Updater
    arena: Arena
    trainer: Trainer
    evaluator: Evaluator


def build_parts(ready: Preflight, ranks: Ranks, begin: Beginning, progress: Progress, stack: ExitStack) -> Parts:
    """All parts as a run needs them at its beginning; `stack` closes those that hold processes or memory.

    The sampler comes before the optimizer: an engine that shares its weights re-points the model's parameters. What
    signals train comes before the sampler, which takes of the memory that is left.
    """
    config, say = ready.config, progress.message
    loss = token_loss(config.algorithm)
    policy = trained_policy(config, ready.base, begin.checkpoint, loss, ranks, say)
    surrogate, vocab = config.algorithm.kernel_surrogate, policy.head().weight.shape[0]
    say(f"loss: {choose('linear_policy_loss', policy.device, policy.dtype, surrogate, vocab)}")
    learners = build_learners(config, ready.base, ranks, say)
    sampler = _build_sampler(ready, policy, learners, ranks, progress)
    stack.callback(sampler.close)
    if ignored := ignored_settings(policy.model):
        say(f"the model's own generation settings are not used: {ignored}")
    optimizer = build_optimizer(policy, config.optimizer, config.run.num_steps)
    updater = Updater(
        policy,
        optimizer,
        config,
        reference=reference_policy(config, ready.base, policy, say) if loss.kl_coef else None,
        sampler_shares_weights=sampler.shares_weights,
    )
    task = trained_by(ready.task, config.task.reward)
    verifier = stack.enter_context(make_pool(task.reward, config.task))
    correctness = Correctness(config.algorithm.correct_threshold, config.algorithm.truncated)
    models = second_policies(config, ready.others, policy, say)
    arena = Arena(task, ready.base.tokenizer, sampler, verifier, policy, correctness, models, ready.stops)
    judging = arena if task is ready.task else _with_verifier(arena, ready, stack)
    evaluator = Evaluator(judging, config.batch.micro_batch_tokens, config.sampler.max_new_tokens)
    trainer = _build_trainer(ready, begin, arena, updater, learners)
    return Parts(policy, sampler, optimizer, TrainedStates(optimizer, learners), updater, arena, trainer, evaluator)


def _with_verifier(arena: Arena, ready: Preflight, stack: ExitStack) -> Arena:
    """For evaluations and the ledger, whatever reward trains."""
    verifier = stack.enter_context(make_pool(ready.task.reward, ready.config.task))
    return replace(arena, task=ready.task, verifier=verifier)


def _build_sampler(
    ready: Preflight, policy: Policy, learners: Mapping[str, Learner], ranks: Ranks, progress: Progress
) -> Sampler:
    config = ready.config
    optimizer = replace(config.optimizer, reduce_every=policy.reduce_every)
    own_bytes = training_bytes(policy.model, optimizer, ranks.world_size)
    return build_sampler(
        SamplerParts(
            config.sampler,
            policy,
            ready.base.tokenizer,
            ready.max_sequence_tokens,
            training_bytes=own_bytes + sum(learner.bytes_to_come for learner in learners.values()),
            trust_remote_code=config.model.trust_remote_code,
            say=progress.message,
        )
    )


def _build_trainer(
    ready: Preflight, begin: Beginning, arena: Arena, updater: Updater, learners: Mapping[str, Learner]
) -> Trainer:
    stream = PromptStream(ready.task.train, ready.config.run.seed, begin.state.get("position", 0))
    dtype = cache_dtype(ready.config.sampler, arena.policy.dtype)
    probe = LogprobProbe(dtype, begin.state.get("probe"))
    context = min(ready.base.limits.values(), default=None)
    limits = {"max_sequence_tokens": context, "max_drawn_tokens": ready.max_sequence_tokens}
    return Trainer(ready.config, arena, stream, updater, probe, learners=learners, **limits)
