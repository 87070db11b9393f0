"""How far a sampler's log-probs are from those of the trainer's own module."""

from transformers import PreTrainedModel

from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.rollouts import Rollout
from fastrl.sampling.probe import measure


def mean_gap(model: PreTrainedModel, rollouts: list[Rollout]) -> float:
    """Mean |Δlogp| a token, in nats; leaves the trainer's log-probs in the rollouts."""
    for rollout, (logprobs, _) in zip(rollouts, score(Policy(model), rollouts, 2000), strict=True):
        rollout.trainer_logprobs = logprobs
    return measure(rollouts).mean
