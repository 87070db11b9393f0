"""Log-probs and entropies of rollouts under a policy, without gradient."""

from collections.abc import Sequence
from dataclasses import replace

from fastrl.policy.model import Policy
from fastrl.policy.sharding import release
from fastrl.process.watchdog import alive
from fastrl.rollouts import FILLER, Rollout


def score(policy: Policy, rollouts: Sequence[Rollout], token_budget: int) -> list[tuple[list[float], list[float]]]:
    """(log-probs, entropies) of each rollout's completion tokens, in the order of `rollouts`.

    Several ranks share the work: all of them call this with the same rollouts, and all have the results.
    """
    parts = policy.cut(rollouts, token_budget, num_ranks=policy.ranks.world_size)
    scored: dict[int, tuple[list[float], list[float]]] = {}
    for indices in policy.ranks.share(parts, filler=[]):
        alive()
        plain = [replace(rollouts[i], old_logprobs=None, ref_logprobs=None) for i in indices]
        logprobs_N, entropy_N = policy(policy.micro_batch(plain or [FILLER]), mode="score")
        sizes = [len(rollouts[i].completion_ids) for i in indices]
        if indices:
            pairs = zip(indices, logprobs_N.split(sizes), entropy_N.split(sizes), strict=True)
            scored |= {i: (logprobs_T.tolist(), entropy_T.tolist()) for i, logprobs_T, entropy_T in pairs}
    release(policy)
    everyones = policy.ranks.merge(scored)
    return [everyones[i] for i in range(len(rollouts))]
