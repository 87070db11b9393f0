"""Log-probs and entropies of rollouts under a policy, without gradient."""

from collections.abc import Sequence

from fastrl.policy.model import Policy
from fastrl.policy.packing import build_micro_batch, cut_micro_batches
from fastrl.rollouts import Rollout
from fastrl.watchdog import alive


def score(policy: Policy, rollouts: Sequence[Rollout], token_budget: int) -> list[tuple[list[float], list[float]]]:
    """(log-probs, entropies) of each rollout's completion tokens, in the order of `rollouts`."""
    results: list[tuple[list[float], list[float]]] = [([], [])] * len(rollouts)
    lengths = [len(r.prompt_ids) + len(r.completion_ids) for r in rollouts]
    for indices in cut_micro_batches(lengths, token_budget, is_packed=policy.is_packed):
        alive()
        batch = build_micro_batch([rollouts[i] for i in indices]).to(policy.device)
        sizes = [len(rollouts[i].completion_ids) for i in indices]
        logprobs, entropy = (values.split(sizes) for values in policy(batch, mode="score"))
        for i, logprobs_T, entropy_T in zip(indices, logprobs, entropy, strict=True):
            results[i] = (logprobs_T.tolist(), entropy_T.tolist())
    return results
