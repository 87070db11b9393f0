"""An evaluation as a file, and its numbers by name."""

import dataclasses
import json
from pathlib import Path

from fastrl.evaluation.kept import save_kept
from fastrl.records.durable import write_file
from fastrl.statistics import Interval


def save_evaluation(evaluation: dict, path: Path) -> None:
    """Write JSON that a power cut leaves whole, and the completions that were kept beside it, before it."""
    save_kept(evaluation.get("completions", ()), path)
    numbers = {name: value for name, value in evaluation.items() if name != "completions"}
    write_file(path, json.dumps(numbers, indent=1))


def load_evaluation(path: str | Path) -> dict:
    """Read an evaluation. FileNotFoundError, or ValueError for a file that is not one."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no evaluation file {path}")
    try:
        evaluation = json.loads(path.read_text())
        _ = {name: float(evaluation[name]) for name in ("num_problems", "num_samples", "truncated_share")}
        _ = dict(evaluation["settings"]), [problem["id"] for problem in evaluation["problems"]]
        _ = [Interval(**band) for band in evaluation["pass_at_k"].values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not an evaluation written by fastrl ({error!r})") from None
    return evaluation


def curve_as_json(curve: dict[int, Interval]) -> dict[str, dict[str, float]]:
    """Intervals by k in JSON's types: {"1": {"mean", "low", "high"}, …}."""
    return {str(k): dataclasses.asdict(interval) for k, interval in curve.items()}


def metric_value(evaluation: dict, name: str) -> float:
    """The value of one of `best_metric_names` in an evaluation."""
    if name == "mean_reward":
        return evaluation["reward"]["mean"] if evaluation["reward"] else float("-inf")
    key, _, k = name.partition("/")
    return evaluation[key][k]["mean"] if k else evaluation[key]


def named_measures(evaluation: dict) -> dict[str, float]:
    """What the task measures and how its stated confidence is calibrated, by name; what is not there is left out."""
    found = {f"calibration/{name}": value for name, value in (evaluation.get("calibration") or {}).items()}
    return evaluation.get("measures", {}) | {name: value for name, value in found.items() if value is not None}


def evaluation_metrics(evaluation: dict) -> dict[str, float]:
    """The evaluation's headline numbers under the names of the metrics log."""
    curves = {f"eval/pass_at_{k}": v["mean"] for k, v in evaluation["pass_at_k"].items()}
    scalars = ("mean_length", "mean_token_entropy", "distinct_answers", "truncated_share")
    named = {f"eval/{name}": value for name, value in named_measures(evaluation).items()}
    belief = evaluation.get("belief") or {}
    if index := belief.get("index"):
        curves["eval/bullshit_index"] = index["mean"]
    if reward := evaluation.get("reward"):
        curves["eval/mean_reward"] = reward["mean"]
    return curves | {f"eval/{name}": evaluation[name] for name in scalars} | named


def reward_text(evaluation: dict) -> str:
    """One line on rewards that are not all 0 or 1, since pass@k only asks whether they reach the threshold."""
    reward = evaluation.get("reward")
    if not reward or not reward["is_graded"]:
        return ""
    band = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**reward)
    threshold = evaluation["correctness"]["threshold"]
    return f"reward: {band} (mean over problems, 95 % band); correct, for pass@k, means reward ≥ {threshold:g}\n"


def belief_text(belief: dict) -> str:
    """One line of what `evaluation.belief` found."""
    said = f"{belief['num_claims']} of {belief['num_samples']} samples claim"
    if belief["index"] is None:
        return f"Bullshit Index: undefined, {said}, or all believe the same"
    index = "{mean:.3f} [{low:.3f}, {high:.3f}]".format(**belief["index"])
    drawn = f"claims drawn from belief would have {belief['index_if_drawn']:.3f}"
    return f"Bullshit Index: {index}, r = {belief['correlation']:+.3f}; {said}; {drawn}"
