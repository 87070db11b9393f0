"""How far a sampler's log-probs are from those of the trainer's own module."""

from dataclasses import replace

from transformers import PreTrainedModel

from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.rollouts import Rollouts
from fastrl.sampling.probe import measure


def mean_gap(model: PreTrainedModel, rollouts: Rollouts) -> float:
    """Mean |Δlogp| a token, in nats."""
    logprobs_N, _ = score(Policy(model), rollouts, 2000)
    return measure(replace(rollouts, policy_logprobs_N=logprobs_N)).mean
