"""fastrl: reinforcement learning from verifiable rewards, built around the sign of the learning signal.

Exports are lazy: `import fastrl` loads neither torch nor transformers (verifier workers rely on it).
"""

import importlib
import importlib.util

if importlib.util.find_spec("fastrl.kernels") is None:
    raise ImportError(
        f"{__file__} is fastrl's source tree, which is not usable uninstalled (its kernels lie elsewhere): "
        "pip install it, and start Python outside of the repository's root or with PYTHONSAFEPATH=1"
    )

_EXPORTS = {
    "TrainConfig": "fastrl.config.schema",
    "EvalConfig": "fastrl.config.schema",
    "WarmupConfig": "fastrl.config.schema",
    "load_config": "fastrl.config.files",
    "Callback": "fastrl.run.callbacks",
    "train": "fastrl.run.training",
    "warmup": "fastrl.warmup",
    "evaluate": "fastrl.evaluation.evaluate",
}
__all__ = sorted(_EXPORTS)


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'fastrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)
