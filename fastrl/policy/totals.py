"""What the micro-batches of a step add up to. Sums stay on the device and are read once: reading waits for the GPU."""

from collections import Counter

import numpy as np
import torch

from fastrl.kernels import PolicyLoss
from fastrl.kernels.rows import to_device
from fastrl.kernels.surrogates import MAX_LOG_RATIO
from fastrl.policy.micro_batch import MicroBatch

SUMS = ("loss", "clipped_positive", "clipped_negative", "ratio_sum", "k3_sum")
COUNTS = ("tokens", "tokens_positive", "tokens_negative", "ratio_tokens", "k3_tokens")


class Totals:
    """Of this process. clipped: tokens whose gradient clipping removed. ratio: π/π_old over tokens with an advantage.

    k3: e^d − d − 1 with d = reference − policy log-prob, over all computed tokens (Schulman's KL estimator).
    """

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(len(SUMS), dtype=torch.float64, device=device)
        self.counts: Counter[str] = Counter()

    def add(self, batch: MicroBatch, num_tokens: int, result: PolicyLoss) -> None:
        """num_tokens: those with a weight."""
        rows, advantages_N = batch.rows, batch.rows.advantages
        is_positive_N, is_negative_N = (to_device(x, self.sums.device) for x in (advantages_N > 0, advantages_N < 0))
        ratio_sum = k3_sum = self.sums.new_zeros(())
        self.counts.update(
            tokens=num_tokens,
            tokens_positive=int((advantages_N > 0).sum()),
            tokens_negative=int((advantages_N < 0).sum()),
        )
        if rows.old_logprobs is not None:
            ratio_N = (result.logprobs - rows.old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
            ratio_sum = ratio_N.where(is_positive_N | is_negative_N, 0.0).sum(dtype=torch.float64)
            self.counts.update(ratio_tokens=int((advantages_N != 0).sum()))
        if rows.ref_logprobs is not None:
            gaps_N = (rows.ref_logprobs - result.logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
            k3_sum = (gaps_N.exp() - gaps_N - 1).sum(dtype=torch.float64)
            self.counts.update(k3_tokens=len(advantages_N))
        clipped = [(result.clipped & is_on_side).sum() for is_on_side in (is_positive_N, is_negative_N)]
        self.sums += torch.stack([x.double() for x in (result.loss.detach(), *clipped, ratio_sum, k3_sum)])

    def read(self) -> np.ndarray:
        """(SUMS and COUNTS,) float64."""
        return np.concatenate([self.sums.cpu().numpy(), [float(self.counts[name]) for name in COUNTS]])
