"""Fused log-prob, entropy and signed policy-loss operations, logits to gradient. `ops` has the three entry points."""

from .dispatch import Choice, choose
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
    "linear_policy_loss",
    "policy_loss",
    "token_logprobs",
]
