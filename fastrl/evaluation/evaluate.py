"""`fastrl eval`: a model, a task, an evaluation file, a plot, and the comparison with an earlier evaluation."""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from fastrl.config.checks import check_eval
from fastrl.config.schema import EvalConfig
from fastrl.evaluation.evaluator import Evaluator
from fastrl.evaluation.results import (
    belief_text,
    curve_as_json,
    load_evaluation,
    named_measures,
    reward_text,
    save_evaluation,
)
from fastrl.policy.loading import load_model
from fastrl.policy.model import Policy
from fastrl.policy.pretrained import Pretrained
from fastrl.prompts.lengths import Completions, longest_sequence, without_overlong
from fastrl.prompts.stops import chosen_stops
from fastrl.records.lock import lock_beside
from fastrl.records.plot import plot_pass_at_k
from fastrl.records.tables import difference_table, measure_table, pass_table
from fastrl.sample_and_judge import Arena
from fastrl.sampling.choose import build_sampler
from fastrl.sampling.protocol import SamplerParts
from fastrl.statistics import paired_pass_difference, solved_and_lost
from fastrl.tasks import Task, load_task
from fastrl.tasks.correctness import Correctness
from fastrl.tasks.given import Given, GivenReward, with_given
from fastrl.tasks.verify import make_pool


def differences_to(base: dict, evaluation: dict) -> dict:
    """Paired differences of pass@k (evaluation − base), and the problems newly solved and lost, as JSON."""
    solved, lost = solved_and_lost(base, evaluation)
    curve = curve_as_json(paired_pass_difference(evaluation, base))
    return {"pass_at_k": curve, "newly_solved": solved, "lost": lost}


def check_same_problems(base: dict, ids: list[str]) -> None:
    """ValueError when an earlier evaluation is not of exactly these problems: there is nothing to compare."""
    if different := {p["id"] for p in base["problems"]} ^ set(ids):
        raise ValueError(
            f"base evaluation and task hold different problems ({len(different)} of them, such as "
            f"{', '.join(map(str, sorted(different)[:3]))}): same split, count and seed are needed"
        )


def _longest_sequence(config: EvalConfig, task: Task, source: Pretrained) -> int:
    """Tokens of the longest prompt and completion to come. ValueError beyond the model's context or vocabulary."""
    new_tokens = config.evaluation.max_new_tokens or config.sampler.max_new_tokens
    completions = Completions("evaluation", f"sampler.max_new_tokens={new_tokens}", new_tokens)
    return longest_sequence(task, getattr(task, config.evaluation.split), source, source.limits, completions)


def evaluate(config: EvalConfig, *, reward: Given | None = None) -> dict:
    """Run one evaluation, write it (JSON and PNG), print its table; returns it. reward: as for `train`."""
    check_eval(config)
    task, given = with_given(config.task, reward)
    with lock_beside(Path(config.output), "output"):
        return _evaluate(replace(config, task=task), Path(config.output), given)


def _evaluate(config: EvalConfig, output: Path, given: Mapping[str, GivenReward]) -> dict:
    split = config.evaluation.split
    base = load_evaluation(config.base) if config.base else None
    if output.exists():
        raise ValueError(f"{output} exists; an evaluation overwrites nothing: choose another --output")
    task = load_task(config.task, splits=(split,), given=given)
    source = Pretrained(config.model)
    tokenizer = source.tokenizer
    source.check_weight_files()
    stops = chosen_stops(config.sampler, tokenizer)
    task = without_overlong(task, tokenizer, config.task.max_prompt_tokens)
    max_sequence_tokens = _longest_sequence(config, task, source)
    if base:
        check_same_problems(base, [p.id for p in getattr(task, split)])
    policy = Policy(load_model(source), temperature=config.sampler.temperature)
    parts = SamplerParts(
        config.sampler, policy, tokenizer, max_sequence_tokens, trust_remote_code=config.model.trust_remote_code
    )
    sampler = build_sampler(parts)
    with closing(sampler), make_pool(task.reward, config.task) as verifier:
        correctness = Correctness(config.correct_threshold, config.truncated)
        arena = Arena(task, tokenizer, sampler, verifier, policy, correctness, stops=stops)
        evaluator = Evaluator(arena, max(16384, max_sequence_tokens), config.sampler.max_new_tokens)
        evaluation = evaluator.run(getattr(task, split), config.evaluation)
    evaluation |= {"split": split, "model": config.model.path}
    if base:
        evaluation["against_base"] = differences_to(base, evaluation)
    save_evaluation(evaluation, output)
    shown = {"base": base, output.stem: evaluation} if base else {output.stem: evaluation}
    plot_pass_at_k(shown, output.with_suffix(".png"))
    print(pass_table(shown))
    print(reward_text(evaluation) + measure_table(named_measures(evaluation)), end="")
    if base:
        print(difference_table({f"{output.stem} − base": (evaluation, base)}))
    if "belief" in evaluation:
        print(belief_text(evaluation["belief"]))
    print(f"evaluation: {output}")
    return evaluation
