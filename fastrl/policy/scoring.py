"""Log-probs and entropies of rollouts under a policy, without gradient."""

from dataclasses import replace

import numpy as np

from fastrl.policy.model import Policy
from fastrl.policy.sharding import release
from fastrl.process.watchdog import alive
from fastrl.rollouts import FILLER, Rollouts, spans


def score(policy: Policy, rollouts: Rollouts, token_budget: int) -> tuple[np.ndarray, np.ndarray]:
    """(log-probs, entropies) of the completion tokens, (N,) float32, in nats; NaN for replies of an environment.

    Several ranks share the work: all of them call this with the same rollouts, and all have the results.
    """
    rollouts = replace(rollouts, credits_N=None, old_logprobs_N=None, ref_logprobs_N=None, importance_weights_N=None)
    parts = policy.cut(rollouts, token_budget, num_ranks=policy.ranks.world_size)
    mine = policy.ranks.share(parts, filler=np.zeros(0, dtype=np.int64))
    found = [_score(policy, rollouts.take(indices)) for indices in mine]
    release(policy)
    scores_2N = np.empty((2, rollouts.num_tokens), dtype=np.float32)
    everyones = policy.ranks.gather_array(np.concatenate([np.zeros((2, 0), np.float32), *found], axis=1))
    for rank, columns in enumerate(everyones):
        indices = np.concatenate([np.zeros(0, np.int64), *parts[rank :: policy.ranks.world_size]])
        scores_2N[:, spans(rollouts.starts_R[indices], rollouts.completion_lengths_R[indices])] = columns
    return scores_2N[0], scores_2N[1]


def _score(policy: Policy, rollouts: Rollouts) -> np.ndarray:
    """(2,N) float32; without rollouts a forward that counts for nothing, as another rank makes one."""
    alive()
    columns = policy(policy.micro_batch(rollouts if len(rollouts) else FILLER), mode="score")
    scores = [column.cpu().numpy() for column in columns]
    return np.stack([rollouts.among_all(column) if len(rollouts) else column[:0] for column in scores])
