"""Gradients of either sign on the probe set, weighed as on-policy sampling would weigh them.

    correct  Σ_y∈correct π(y|x) ∇log π(y|x)        wrong  −Σ_y∈wrong π(y|x) ∇log π(y|x)        means over prompts

Over *all* completions the two are equal: E[∇log π] = 0, so PSR and NSR have one exact on-policy gradient. How far the
cosine is from 1 says how much the listed completions leave out.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from fastrl.ledger.probe_set import ProbeSet
from fastrl.policy.model import Policy
from fastrl.rollouts import Rollouts


def sign_gradients(
    policy: Policy, probe_set: ProbeSet, logprobs_S: np.ndarray, token_budget: int
) -> dict[str, float | int | None]:
    """Norms of the two ascent directions, their cosine (None where one is 0), and tokens behind each.

    Two sets of gradients exist at once; no parameter's `.grad` is touched.
    """
    plain = Policy(policy.model, temperature=policy.temperature)  # A·log p alone: no clip, no regulariser
    parts = {}
    for name, sign in (("correct", 1.0), ("wrong", -1.0)):
        chosen = [i for i, p in enumerate(probe_set.probes) if (p.kind == "correct") == (sign > 0)]
        rollouts = probe_set.rollouts.take(np.array(chosen, dtype=np.int64))
        rollouts = replace(rollouts, credits_N=np.full(rollouts.num_tokens, sign, dtype=np.float32))
        weights = np.exp(logprobs_S[chosen]) / len(probe_set.prompt_ids)
        parts[name] = _ascent(plain, rollouts, weights, token_budget), len(rollouts.own(rollouts.rollout_N))
    (correct, num_correct), (wrong, num_wrong) = parts["correct"], parts["wrong"]
    norms = _dot(correct, correct) ** 0.5, _dot(wrong, wrong) ** 0.5
    return {
        "correct_norm": norms[0],
        "wrong_norm": norms[1],
        "cosine": _dot(correct, wrong) / (norms[0] * norms[1]) if all(norms) else None,
        "correct_tokens": num_correct,
        "wrong_tokens": num_wrong,
    }


def _ascent(policy: Policy, rollouts: Rollouts, weights_S: np.ndarray, token_budget: int) -> list[Tensor]:
    """−∇ of Σ_i w_i Σ_t ℓ_t over all trained parameters, accumulated in float32."""
    parameters = [p for p in policy.parameters() if p.requires_grad]
    totals = [torch.zeros_like(p, dtype=torch.float32) for p in parameters]
    for members in policy.cut(rollouts, token_budget):
        batch = policy.micro_batch(rollouts.take(members), weights_S[members])
        found = torch.autograd.grad(policy(batch).loss, parameters, allow_unused=True)
        for total, gradient in zip(totals, found, strict=True):
            if gradient is not None:
                total -= gradient
    return totals


def _dot(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(torch.sum(x.double() * y.double()).item() for x, y in zip(a, b, strict=True))
