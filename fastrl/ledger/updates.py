"""What the update of one step did to its own batch, by the sign of the advantage.

`zero` are rollouts that carried no gradient (the correct ones under NSR): their changes are side effects.
"""

import numpy as np

from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.rollouts import Rollouts


def update_changes(policy: Policy, scored: Rollouts, token_budget: int) -> dict[str, dict[str, float]]:
    """Log-probs after the update minus those before it, in nats, per token and per completion, for each sign.

    scored: a sample of the batch, with the `policy_logprobs_N` of before the update. Signs that it lacks are left out.
    """
    after_N, _ = score(policy, scored, token_budget)
    changes_N = after_N.astype(np.float64) - scored.policy_logprobs_N
    mean_credits_R = scored.credit_sums_R / np.maximum(scored.loss_tokens_R, 1)
    result = {}
    for name, sign in (("positive", 1), ("negative", -1), ("zero", 0)):
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
    return result
