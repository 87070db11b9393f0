"""What a model says of each completion token, without gradient: log-probs and entropies, or a critic's values."""

from dataclasses import replace

import numpy as np

from fastrl.policy.critic import Critic
from fastrl.policy.model import Backbone, Policy
from fastrl.policy.sharding import release
from fastrl.process.watchdog import alive
from fastrl.rollouts import FILLER, Rollouts, spans


def score(policy: Policy, rollouts: Rollouts, token_budget: int) -> tuple[np.ndarray, np.ndarray]:
    """(log-probs, entropies) of the completion tokens, (N,) float32, in nats; NaN for replies of an environment.

    Several ranks share the work: all of them call this with the same rollouts, and all have the results.
    """
    logprobs_N, entropy_N = _columns(policy, rollouts, token_budget, num_columns=2)
    return logprobs_N, entropy_N


def values(critic: Critic, rollouts: Rollouts, token_budget: int) -> np.ndarray:
    """(N,) float32: the value before each completion token. Collective, as `score` is."""
    return _columns(critic, rollouts, token_budget, num_columns=1)[0]


def _columns(model: Backbone, rollouts: Rollouts, token_budget: int, *, num_columns: int) -> np.ndarray:
    """(num_columns,N) float32: what the model's `score` mode gives."""
    rollouts = replace(rollouts, credits_N=None, old_logprobs_N=None, ref_logprobs_N=None, importance_weights_N=None)
    parts = model.cut(rollouts, token_budget, num_ranks=model.ranks.world_size)
    mine = model.ranks.share(parts, filler=np.zeros(0, dtype=np.int64))
    found = [_score(model, rollouts.take(indices)) for indices in mine]
    release(model)
    columns_CN = np.empty((num_columns, rollouts.num_tokens), dtype=np.float32)
    none_C0 = np.zeros((num_columns, 0), np.float32)
    for rank, scores in enumerate(model.ranks.gather_array(np.concatenate([none_C0, *found], axis=1))):
        indices = np.concatenate([np.zeros(0, np.int64), *parts[rank :: model.ranks.world_size]])
        columns_CN[:, spans(rollouts.starts_R[indices], rollouts.completion_lengths_R[indices])] = scores
    return columns_CN


def _score(model: Backbone, rollouts: Rollouts) -> np.ndarray:
    """(C,N) float32; without rollouts a forward that counts for nothing, as another rank makes one."""
    alive()
    columns = model(model.micro_batch(rollouts if len(rollouts) else FILLER), mode="score")
    scores = [column.cpu().numpy() for column in columns]
    return np.stack([rollouts.among_all(column) if len(rollouts) else column[:0] for column in scores])
