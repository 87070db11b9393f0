"""What the update of one step did to its own batch, by the sign of the advantage and by the rank of the token.

`zero` are rollouts that carried no gradient (the correct ones under NSR): their changes are side effects.
"""

from random import Random

import numpy as np
from torch import Tensor

from fastrl.ledger.ranks import changes_by_rank, kept_distributions
from fastrl.policy.distributions import Position
from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.process.seeds import seed_of
from fastrl.rollouts import Rollouts

SIGNS = {"positive": 1, "negative": -1, "zero": 0}
# Name of a sign -> tokens with credit of that sign, and the log-probs of whole distributions there, before the update.
TokensBefore = dict[str, tuple[list[Position], Tensor]]


def tokens_before(policy: Policy, scored: Rollouts, count: int, seed: int, token_budget: int) -> TokensBefore:
    """A seeded sample of at most `count` tokens of each sign that a sample of the batch has."""
    found = {}
    credits_N = scored.credits_N * scored.loss_mask_N
    places_N = np.arange(scored.num_tokens) - scored.by_token(scored.starts_R)
    for name in ("positive", "negative"):
        chosen = np.flatnonzero(np.sign(credits_N) == SIGNS[name]).tolist()
        chosen = sorted(Random(seed_of(seed, name)).sample(chosen, min(count, len(chosen))))
        positions = list(zip(scored.rollout_N[chosen].tolist(), places_N[chosen].tolist(), strict=True))
        if positions:
            found[name] = positions, kept_distributions(policy, scored, positions, token_budget)
    return found


def update_changes(policy: Policy, scored: Rollouts, before: TokensBefore, token_budget: int) -> dict[str, dict]:
    """Log-probs after the update minus those before it, in nats, per token and per completion, for each sign.

    scored: a sample of the batch, with the `policy_logprobs_N` of before the update; `before`: its `tokens_before`.
    Signs that it lacks are left out.
    """
    after_N, _ = score(policy, scored, token_budget)
    changes_N = after_N.astype(np.float64) - scored.policy_logprobs_N
    mean_credits_R = scored.credit_sums_R / np.maximum(scored.loss_tokens_R, 1)
    result: dict[str, dict] = {}
    for name, sign in SIGNS.items():
        is_mine_R = np.sign(scored.credit_sums_R) == sign
        if is_mine_R.any():
            mine = scored.take(is_mine_R)
            tokens = mine.own(changes_N[scored.by_token(is_mine_R)])
            result[name] = {
                "num": int(is_mine_R.sum()),
                "tokens": len(tokens),
                "mean_advantage": float(mean_credits_R[is_mine_R].mean()),
                "token_change": float(tokens.mean()),
                "fell_share": float((tokens < 0).mean()),
                "completion_change": float(scored.sum_by_rollout(changes_N)[is_mine_R].mean()),
            }
    for name, (positions, base_nV) in before.items():
        rows = changes_by_rank(policy, scored, positions, base_nV, token_budget)
        result[name] = result.get(name, {}) | {"by_rank": rows}
    return result
