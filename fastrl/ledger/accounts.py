"""The books: how much probability each kind of completion holds, and what moved between two policies.

    mass of a kind  = mean over prompts of Σ π(y | x) over its completions         exact for what is listed
    rest            = 1 − Σ of the three kinds                                    exact, too; who is in it is not known
    left_penalised  = to_correct + to_other_wrong + to_rest                       an identity, not an estimate

`rest` holds wrong and, unless the task lists every solution, correct completions that nobody drew.
"""

import numpy as np

from fastrl.ledger.probe_set import KINDS, ProbeSet


def masses(probe_set: ProbeSet, logprobs_S: np.ndarray) -> dict[str, np.ndarray]:
    """(P,) probability per prompt of each kind and of the rest. logprobs_S: sequence log-probs, float64."""
    prompts_S = np.array([p.prompt for p in probe_set.probes], dtype=np.int64)
    kinds_S = np.array([p.kind for p in probe_set.probes])
    num_prompts = len(probe_set.prompt_ids)
    held = {
        kind: np.bincount(prompts_S, np.exp(logprobs_S) * (kinds_S == kind), minlength=num_prompts) for kind in KINDS
    }
    return held | {"rest": 1.0 - sum(held.values())}


def moved(base: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean over prompts of what left the penalised completions and of where it arrived (negative: it left there)."""
    change = {kind: float(np.mean(now[kind] - base[kind])) for kind in base}
    return {
        "left_penalised": -change["penalised"],
        "to_correct": change["correct"],
        "to_other_wrong": change["other_wrong"],
        "to_rest": change["rest"],
    }


def logprob_changes(probe_set: ProbeSet, base_S: np.ndarray, now_S: np.ndarray) -> dict[str, dict[str, float]]:
    """Per kind: log-probs in nats a sequence, and how they changed.

    A negative `change` of the correct ones is lazy displacement (arXiv:2505.18830): learning lowers the likelihood of
    what is right. It is a plain mean over completions; `weighted_change` weighs each by its initial probability.
    """
    kinds_S = np.array([p.kind for p in probe_set.probes])
    result = {}
    for kind in KINDS:
        base, now = base_S[kinds_S == kind], now_S[kinds_S == kind]
        if len(base):
            result[kind] = {
                "num": len(base),
                "mean": float(now.mean()),
                "change": float((now - base).mean()),
                "weighted_change": float(np.average(now - base, weights=np.exp(base - base.max()))),
                "fell_share": float((now < base).mean()),
            }
    return result
