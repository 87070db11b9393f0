"""Token by token: what the sampled token lost, which alternatives gained, and the gradient that does it.

At one position with distribution p over V tokens and sampled token y, the surrogate A·log p_y has the logit gradient

    sampled token   A·(1 − p_y)          others   −A·p_v                                     (what fastrl implements)

and A·p_y, which arXiv:2506.01347 differentiates (eqs. 7, 8), the same times p_y. Everything here is per unit of |A|;
with A = −1 the sampled token falls and every other one rises in proportion to p_v.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

CONFIDENCE_BINS = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)  # of p_y


def gradient_statistics(logprobs_nV: Tensor, targets_n: Tensor) -> dict[str, Tensor]:
    """(n,) gradient magnitudes per position, entropy in nats. others: Euclidean norm over them. paper_*: times p_y."""
    probs_nV = logprobs_nV.exp()
    p_n = probs_nV.gather(1, targets_n[:, None]).squeeze(1)
    others_nV = probs_nV.scatter(1, targets_n[:, None], 0.0)
    sampled_n = others_nV.sum(1)  # 1 − p_y without cancellation
    finite_nV = logprobs_nV.masked_fill(torch.isneginf(logprobs_nV), 0.0)
    return {
        "p": p_n,
        "entropy": -(probs_nV * finite_nV).sum(1),
        "sampled": sampled_n,
        "others": others_nV.norm(dim=1),
        "largest_other": others_nV.amax(1),
        "paper_sampled": p_n * sampled_n,
        "paper_others": p_n * others_nV.norm(dim=1),
    }


def movement_statistics(base_nV: Tensor, now_nV: Tensor, targets_n: Tensor) -> dict[str, Tensor]:
    """(n,) per position, from the log-probs of the initial and of the current policy.

    rank_base, rank: of the sampled token (1: the most likely). lost: what its probability fell by. arrived: Σ of the
    gains of all others; arrived_at_top: what of it went to the likeliest of them under the initial policy. gainer_rank:
    mean initial rank of the gainers, weighted by gain. follows_prior: correlation, over the others, of gain and initial
    probability (1: mass is spread as π); NaN where there is none to speak of.
    """
    base_p, now_p = base_nV.exp(), now_nV.exp()
    y = targets_n[:, None]
    gain_nV = (now_p - base_p).scatter(1, y, 0.0)
    arrived_nV = gain_nV.clamp(min=0)
    others_nV = base_p.scatter(1, y, -1.0)
    ranks_nV = base_p.argsort(dim=1, descending=True).argsort(dim=1) + 1
    arrived_n = arrived_nV.sum(1)
    return {
        "rank_base": (base_p > base_p.gather(1, y)).sum(1) + 1,
        "rank": (now_p > now_p.gather(1, y)).sum(1) + 1,
        "lost": (base_p - now_p).gather(1, y).squeeze(1),
        "arrived": arrived_n,
        "arrived_at_top": arrived_nV.gather(1, others_nV.argmax(1, keepdim=True)).squeeze(1),
        "gainer_rank": (arrived_nV * ranks_nV).sum(1) / arrived_n,
        "follows_prior": _correlation_without(gain_nV, base_p, y),
    }


def _correlation_without(a_nV: Tensor, b_nV: Tensor, y_n1: Tensor) -> Tensor:
    """(n,) Pearson correlation of two rows, without the entries at y."""
    keep_nV = torch.ones_like(a_nV).scatter(1, y_n1, 0.0)
    count_n1 = keep_nV.sum(1, keepdim=True)
    a, b = ((v - (v * keep_nV).sum(1, keepdim=True) / count_n1) * keep_nV for v in (a_nV, b_nV))
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def top_gainers(base_nV: Tensor, now_nV: Tensor, targets_n: Tensor, top_k: int) -> list[list[dict]]:
    """Per position the `top_k` alternatives that gained most: token, gain in probability, initial and present rank."""
    base_p, now_p = base_nV.exp(), now_nV.exp()
    gain_nV = (now_p - base_p).scatter(1, targets_n[:, None], -torch.inf)
    gains_nk, tokens_nk = gain_nV.topk(min(top_k, gain_nV.shape[1] - 1), dim=1)
    ranks = [(p.unsqueeze(1) > p.gather(1, tokens_nk).unsqueeze(2)).sum(2).add(1).tolist() for p in (base_p, now_p)]
    rows = zip(tokens_nk.tolist(), gains_nk.tolist(), *ranks, strict=True)
    names = ("token", "gain", "rank_base", "rank")
    return [[dict(zip(names, v, strict=True)) for v in zip(*row, strict=True) if v[1] > 0] for row in rows]


def means(statistics: Iterable[dict[str, Tensor]]) -> dict[str, float]:
    """Means over all positions, values that are not finite left out."""
    joined = joined_values(statistics)
    return {key: float(v[np.isfinite(v)].mean()) for key, v in joined.items() if np.isfinite(v).any()}


def joined_values(statistics: Iterable[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """Chunks of (n,) statistics → one float64 array per key."""
    parts: dict[str, list[np.ndarray]] = {}
    for chunk in statistics:
        for key, values in chunk.items():
            parts.setdefault(key, []).append(values.double().cpu().numpy())
    return {key: np.concatenate(arrays) for key, arrays in parts.items()}


def by_confidence(statistics: Iterable[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Mean gradient magnitudes in bins of p_y: the paper's claim is about confident tokens being spared."""
    joined = joined_values(statistics)
    if not joined:
        return []
    bins_n = np.clip(np.digitize(joined["p"], CONFIDENCE_BINS) - 1, 0, len(CONFIDENCE_BINS) - 2)
    rows = []
    for index, (low, high) in enumerate(pairwise(CONFIDENCE_BINS)):
        mine_n = bins_n == index
        if mine_n.any():
            values = {key: float(v[mine_n].mean()) for key, v in joined.items()}
            rows.append({"from": low, "to": high, "num": int(mine_n.sum())} | values)
    return rows
