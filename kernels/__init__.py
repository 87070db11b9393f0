"""Fused log-prob, entropy and signed policy-loss operations, logits to gradient. `ops` has the three entry points."""

if __name__ == "kernels":
    # The repository's root is on sys.path, and this folder shadows a public package of the same name that transformers
    # probes for: look too old to be used, and never register the operators of `fastrl.kernels` a second time.
    __version__ = "0.0.0"
else:
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
