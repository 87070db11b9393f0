"""By rank: whether penalising a token sharpens or flattens its distribution depends on where the token stands in it.

A step on the logits of one position, z ← z + η·A·(e_y − p) with A = −1, raises every other token in proportion to its
own probability: a rare token's loss goes to the mode, the mode's loss to the others. With η = 1 and p = (.6, .3, .1)

    the third penalised   (.710, .263, .026)    the mode gains .110, entropy falls by .208 nats: sharper
    the first penalised   (.438, .441, .120)    the mode loses .162, entropy rises by .080 nats: flatter

In a network the tokens of a batch share parameters, so what is measured at a position is the work of all of them.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fastrl.ledger.movement import joined_values
from fastrl.policy.distributions import Position, token_distributions
from fastrl.policy.model import Policy
from fastrl.rollouts import Rollouts

RANKS = ((1, 1), (2, 2), (3, 10), (11, None))  # classes, from and to; None: no end


def rank_statistics(base_nV: Tensor, now_nV: Tensor, targets_n: Tensor) -> dict[str, Tensor]:
    """(n,) per position, from log-probs before and after. rank: of the token before (1: the likeliest). p: its
    probability then. lost: what that fell by. mode_change: of the probability of the token that was likeliest before.
    entropy_change: in nats."""
    base_p, now_p = base_nV.exp(), now_nV.exp()
    p_n1, mode_n1 = base_p.gather(1, targets_n[:, None]), base_p.argmax(1, keepdim=True)
    return {
        "rank": (base_p > p_n1).sum(1) + 1,
        "p": p_n1.squeeze(1),
        "lost": (p_n1 - now_p.gather(1, targets_n[:, None])).squeeze(1),
        "mode_change": (now_p - base_p).gather(1, mode_n1).squeeze(1),
        "entropy_change": entropy(now_nV) - entropy(base_nV),
    }


def entropy(logprobs_nV: Tensor) -> Tensor:
    """(n,) in nats; a log-prob of −∞ adds nothing."""
    return torch.special.entr(logprobs_nV.exp()).sum(1)


def by_rank(statistics: Iterable[dict[str, Tensor]]) -> list[dict[str, float | int | None]]:
    """Means in classes of the rank, classes without a position left out. share: of all positions; share times a mean,
    summed over the classes, is the mean over all."""
    joined = joined_values(statistics)
    if not joined:
        return []
    ranks_n, rows = joined.pop("rank"), []
    for first, last in RANKS:
        mine_n = (ranks_n >= first) & (ranks_n <= (last or float("inf")))
        if mine_n.any():
            values = {key: float(v[mine_n].mean()) for key, v in joined.items()}
            rows.append({"from": first, "to": last, "num": int(mine_n.sum()), "share": float(mine_n.mean())} | values)
    return rows


def kept_distributions(policy: Policy, rollouts: Rollouts, positions: Sequence[Position], token_budget: int) -> Tensor:
    """(n,V) float32 log-probs at the positions, in their order, in CPU memory."""
    distributions_nV = torch.empty(len(positions), policy.head().weight.shape[0])
    for indices, logprobs_nV in token_distributions(policy, rollouts, positions, token_budget):
        distributions_nV[indices] = logprobs_nV.cpu()
    return distributions_nV


def changes_by_rank(
    policy: Policy, rollouts: Rollouts, positions: Sequence[Position], base_nV: Tensor, token_budget: int
) -> list[dict[str, float | int | None]]:
    """`by_rank` of the policy as it is now against `kept_distributions` of before."""
    statistics = []
    for indices, now_nV in token_distributions(policy, rollouts, positions, token_budget):
        targets = [int(rollouts.completion(i)[t]) for i, t in (positions[index] for index in indices)]
        targets_n = torch.tensor(targets, device=now_nV.device)
        statistics.append(rank_statistics(base_nV[indices].to(now_nV.device), now_nV, targets_n))
    return by_rank(statistics)
