"""Fused log-prob, entropy and signed policy-loss operations, logits to gradient. `ops` has the three entry points."""

from .dispatch import Choice, choose, forced_backend
from .losses import SURROGATES, Cispo, Head, PolicyLoss, PpoClip, Reinforce, Surrogate, TokenLoss
from .ops import linear_policy_loss, policy_loss, token_logprobs

__all__ = [
    "SURROGATES",
    "Choice",
    "Cispo",
    "Head",
    "PolicyLoss",
    "PpoClip",
    "Reinforce",
    "Surrogate",
    "TokenLoss",
    "choose",
    "forced_backend",
    "linear_policy_loss",
    "policy_loss",
    "token_logprobs",
]
