"""What the update of one step did to its own batch, by the sign of the advantage.

`zero` are rollouts that carried no gradient (the correct ones under NSR): what moves there moved by itself.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastrl.policy.model import Policy
from fastrl.policy.scoring import score
from fastrl.rollouts import Rollout


def update_changes(policy: Policy, scored: Sequence[Rollout], token_budget: int) -> dict[str, dict[str, float]]:
    """Log-probs after the update less those before it, in nats a token and a completion, over the scored sample.

    The rollouts hold `trainer_logprobs` of before; signs of which the sample has none are left out.
    """
    bare = [replace(r, old_logprobs=None, ref_logprobs=None) for r in scored]  # a batch has them for all or for none
    after = [logprobs for logprobs, _ in score(policy, bare, token_budget)]
    changes = [np.subtract(a, r.trainer_logprobs) for a, r in zip(after, scored, strict=True)]
    result = {}
    for name, sign in (("positive", 1), ("negative", -1), ("zero", 0)):
        mine = [i for i, r in enumerate(scored) if np.sign(r.advantage) == sign]
        if mine:
            tokens = np.concatenate([changes[i] for i in mine])
            result[name] = {
                "num": len(mine),
                "tokens": len(tokens),
                "mean_advantage": float(np.mean([scored[i].advantage for i in mine])),
                "token_change": float(tokens.mean()),
                "fell_share": float((tokens < 0).mean()),
                "completion_change": float(np.mean([changes[i].sum() for i in mine])),
            }
    return result
