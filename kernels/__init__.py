"""Fused operations from logits to log-probs, entropy, signed policy loss and gradient. `ops` has the three of them."""

if __name__ == "kernels":
    # The repository's root is on sys.path, and this folder shadows a public package of the same name that transformers
    # probes for: look too old to be used, and never register the operators of `fastrl.kernels` a second time.
    __version__ = "0.0.0"
else:
    from importlib import import_module

    _NAMES = {
        "dispatch": ("Choice", "choose", "forced_backend"),
        "losses": ("Head", "PolicyLoss", "TokenLoss"),
        "ops": ("linear_policy_loss", "policy_loss", "token_logprobs"),
        "rows": ("TokenRows",),
        "surrogates": ("SURROGATES", "Cispo", "PpoClip", "Reinforce", "Surrogate"),
    }
    _HOMES = {name: home for home, names in _NAMES.items() for name in names}

    def __getattr__(name: str):
        """Looked up on first use: settings import `surrogates` in processes that never load torch."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
