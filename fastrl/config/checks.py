"""Values that cannot work together. Nothing is loaded to find them."""

import dataclasses
import os
import re
from operator import attrgetter

from fastrl.config.algorithm import AlgorithmConfig, chosen
from fastrl.config.annotations import check_ranges, nearest
from fastrl.config.evaluation import BeliefConfig
from fastrl.config.schema import EvalConfig, EvaluationConfig, OptimizerConfig, TrainConfig, WarmupConfig
from fastrl.config.settings import with_settings
from fastrl.learning.objectives import OBJECTIVES
from fastrl.learning.refiners import REFINERS
from fastrl.learning.signals import SIGNALS
from fastrl.statistics import ks_up_to


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def check_train(config: TrainConfig) -> TrainConfig:
    """The config with its preset applied. ValueError for values that cannot be, or cannot work together."""
    check_ranges(config)
    batch, algorithm, sampler = config.batch, config.algorithm, config.sampler
    _require(bool(config.model.path), "model.path is missing: a Hugging Face folder or hub id")
    _require(
        sampler.top_p == 1 and sampler.top_k == 0,
        f"training samples by temperature only: top_p={sampler.top_p}, top_k={sampler.top_k} would make the sampler's "
        "distribution another one than the loss's; set them under [evaluation]",
    )
    _require(
        batch.micro_batch_tokens > sampler.max_new_tokens,
        f"batch.micro_batch_tokens={batch.micro_batch_tokens} cannot hold one prompt and a completion of "
        f"sampler.max_new_tokens={sampler.max_new_tokens}",
    )
    _require(
        algorithm.updates_per_batch <= batch.prompts_per_step,
        f"algorithm.updates_per_batch={algorithm.updates_per_batch} exceeds batch.prompts_per_step="
        f"{batch.prompts_per_step}: a mini-batch holds whole groups",
    )
    _require(
        algorithm.overlong.buffer <= sampler.max_new_tokens,
        f"algorithm.overlong.buffer={algorithm.overlong.buffer} exceeds sampler.max_new_tokens="
        f"{sampler.max_new_tokens}: every completion would be penalised for its length",
    )
    _check_objective(algorithm, batch.rollouts_per_prompt)
    signal_models(config)
    _check_gradients(config.optimizer)
    _check_best_metric(config.run.best_metric, config.evaluation)
    _check_belief(config.evaluation.belief)
    return dataclasses.replace(config, algorithm=_apply_preset(algorithm))


def _check_objective(algorithm: AlgorithmConfig, rollouts_per_prompt: int) -> None:
    compares_group = OBJECTIVES[algorithm.objective].compares_group
    asked = {f"objective {algorithm.objective}": OBJECTIVES[algorithm.objective]}
    asked |= {f"signal {name}": SIGNALS[name] for name in algorithm.signals}
    for what, cls in asked.items():
        _require(
            rollouts_per_prompt > 1 or not cls.compares_group,
            f"{what} compares the rollouts of a prompt: batch.rollouts_per_prompt must be at least 2, got "
            f"{rollouts_per_prompt}",
        )
    comparing = ", ".join(name for name, objective in OBJECTIVES.items() if objective.compares_group)
    _require(
        algorithm.overlong.buffer == 0 or compares_group,
        f"algorithm.overlong.buffer={algorithm.overlong.buffer} shapes rewards that are compared within a group "
        f"({comparing}); objective {algorithm.objective} only asks whether a completion is correct",
    )


def signal_models(config: TrainConfig) -> dict[str, str]:
    """Role → folder or hub id of the models that signals and the refiner need beside the policy, maybe the run's own.

    ValueError where one of them cannot work, where two ask for one role, and where nothing gives any credit.
    """
    algorithm = config.algorithm
    _require(
        algorithm.objective != "none" or bool(algorithm.signals),
        "algorithm.objective = 'none' needs a signal that gives credit instead: set algorithm.signals",
    )
    found: dict[str, str] = {}
    asking = [chosen(algorithm, SIGNALS, name) for name in algorithm.signals]
    for models in [one.models() for one in (*asking, chosen(algorithm, REFINERS, algorithm.refiner))]:
        shared = found.keys() & models.keys()
        _require(not shared, f"algorithm.signals = {list(algorithm.signals)}: two of them bring a {', '.join(shared)}")
        found |= {role: os.path.expanduser(path) or config.model.path for role, path in models.items()}
    return found


def check_ranks(config: TrainConfig, num_ranks: int) -> None:
    """ValueError for what does not go with parameters that are sharded over num_ranks processes, or offloaded."""
    weights, kind = config.sampler.weights, config.optimizer.kind
    if num_ranks == 1 and not config.optimizer.offload:
        _require(weights != "gather", "sampler.weights = 'gather' is for several processes (torchrun); use 'auto'")
        return
    why = f"{num_ranks} ranks" if num_ranks > 1 else "optimizer.offload = true"
    _require(
        weights in ("auto", "gather"),
        f"{why}: the parameters are sharded, and sampler.weights must be 'auto' or 'gather', not '{weights}'",
    )
    _require(
        config.model.lora_rank == 0,
        f"{why}: adapters are not sharded so far; model.lora_rank must be 0, not {config.model.lora_rank}",
    )
    _require(
        config.ledger.every == 0,
        f"{why}: the ledger needs unsharded parameters so far; ledger.every must be 0, not {config.ledger.every}",
    )
    _require(kind == "adamw", f"{why}: float32 shards need optimizer.kind = 'adamw', not '{kind}'")
    _require(
        num_ranks == 1 or config.run.scored_rollouts >= 1,
        f"{why}: the pass that scores rollouts gives all ranks the same forwards before an update; run.scored_rollouts "
        f"must be at least 1, not {config.run.scored_rollouts}",
    )


def _check_gradients(optimizer: OptimizerConfig) -> None:
    _require(
        optimizer.kind != "adamw" or optimizer.grad_dtype == "float32",
        f"optimizer.grad_dtype = '{optimizer.grad_dtype}' needs a kind without masters (adamw-bf16, adamw-8bit): "
        "float32 masters take float32 gradients",
    )


def _check_best_metric(name: str, evaluation: EvaluationConfig) -> None:
    known = best_metric_names(evaluation.num_samples)
    _require(
        not evaluation.every or name in known,
        f"run.best_metric = '{name}' is not in an evaluation of {evaluation.num_samples} samples{nearest(name, known)}",
    )


def _check_belief(belief: BeliefConfig) -> None:
    claim, probe = belief.claim, belief.probe
    is_pattern = len(claim) > 2 and claim[0] == claim[-1] == "/"
    _require(
        is_pattern or claim in ("answer", "confidence"),
        f"evaluation.belief.claim = {claim!r}: expected 'answer', 'confidence' or a regular expression, '/…/'",
    )
    try:
        re.compile(claim[1:-1] if is_pattern else "")
    except re.error as error:
        raise ValueError(f"evaluation.belief.claim = {claim!r} is no regular expression: {error}") from None
    _require(
        not probe or "{problem}" in probe or "{completion}" in probe,
        f"evaluation.belief.probe = {probe!r} holds neither {{problem}} nor {{completion}}: all would believe the same",
    )
    _require(belief.yes != belief.no, f"evaluation.belief: yes and no are both {belief.yes!r}; belief needs two words")


def best_metric_names(num_samples: int) -> list[str]:
    """What run.best_metric may be: a point of a curve, or a scalar of the evaluation."""
    curves = [f"{curve}/{k}" for curve in ("pass_at_k", "maj_at_k") for k in ks_up_to(num_samples)]
    return [*curves, "mean_reward", "mean_token_entropy", "distinct_answers", "distinct_correct_answers"]


PAPER_CODE = {
    "surrogate": "ppo_clip",
    "ppo_clip.low": 0.2,
    "ppo_clip.high": 0.2,
    "ppo_clip.dual": 0.0,
    "reduction": "micro-batch-mean",
    "minibatch_cut": "after-dropping",
}


def _apply_preset(algorithm: AlgorithmConfig) -> AlgorithmConfig:
    """The preset's settings; ValueError where another value than the default was asked for beside it."""
    if algorithm.preset == "none":
        return algorithm
    for key, value in PAPER_CODE.items():
        asked, default = (attrgetter(key)(config) for config in (algorithm, AlgorithmConfig()))
        _require(
            asked in (value, default),
            f"algorithm.preset = 'paper-code' means {key} = {value!r}, but algorithm.{key} = {asked!r} was asked for",
        )
    return with_settings(algorithm, PAPER_CODE)


def check_eval(config: EvalConfig) -> None:
    """ValueError for an evaluation that cannot run."""
    check_ranges(config)
    _check_belief(config.evaluation.belief)
    _require(
        config.model.lora_rank == 0,
        f"an evaluation takes adapters from model.path: model.lora_rank must be 0, got {config.model.lora_rank}",
    )
    _require(bool(config.model.path), "model.path is missing: a Hugging Face folder or hub id")
    _require(
        config.output.endswith(".json"), f"output must end in .json (its plot lies beside it), got {config.output}"
    )


def check_warmup(config: WarmupConfig) -> None:
    """ValueError for a warm start that cannot run."""
    check_ranges(config)
    _check_gradients(config.optimizer)
    _require(
        config.model.lora_rank == 0,
        f"a warm start trains all parameters: model.lora_rank must be 0, got {config.model.lora_rank}",
    )
    _require(
        not config.optimizer.offload,
        "a warm start keeps all on its device: optimizer.offload must be false, got true",
    )
    _require(
        config.scratch.hidden_size % (2 * config.scratch.num_heads) == 0,
        f"scratch.hidden_size={config.scratch.hidden_size} must be an even multiple of "
        f"scratch.num_heads={config.scratch.num_heads}",
    )
