"""Who talks, and what other libraries say that is not for our users."""

import logging
import os


def is_main_rank() -> bool:
    """The one of torchrun's processes that talks."""
    return os.environ.get("RANK", "0") == "0"


def without_torchao_noise() -> None:
    """transformers imports torchao where it is installed, which warns of kernels that we never call."""
    os.environ.setdefault("TORCHAO_FORCE_SKIP_LOADING_SO_FILES", "1")
    logging.getLogger("torchao").setLevel(logging.ERROR)
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)


def without_progress_bars() -> None:
    """transformers draws bars for loading and saving weights; ours is the only progress shown."""
    from transformers.utils import logging

    logging.disable_progress_bar()
