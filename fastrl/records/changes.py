"""Settings that a resumed run may change: those that change the numbers of a step by no more than rounding."""

from fastrl.config.schema import TrainConfig
from fastrl.config.settings import settings_of

# num_steps changes a decaying schedule: see `schedule_change`. micro_batch_tokens: see `_is_free`.
FREE_ON_RESUME = {
    "model": {"attention", "compile", "gradient_checkpointing", "trust_remote_code"},
    "task": {"reward_folder", "timeout_s", "memory_mb", "num_workers"},
    "sampler": {"batch_size", "kv_cache_bytes", "release_kv_cache"},
    "batch": {"micro_batch_tokens"},
    "optimizer": {"offload", "reduce_every"},
    "evaluation": {"every", "split", "at_end", "num_samples", "kept_completions"},
    "run": {
        "folder",
        "num_steps",
        "checkpoint_every",
        "keep_last",
        "scored_rollouts",
        "rescored_every",
        "rollouts_mib",
        "max_nonfinite_steps",
        "watchdog_s",
        "sinks",
    },
    "ledger": {"every", "top_k", "gradients"},
}


def differences(old: TrainConfig, new: TrainConfig) -> list[str]:
    """One line, `section.key is … there, … here`, for every setting that differs and may not."""
    pairs = zip(settings_of(old), settings_of(new), strict=True)
    return [
        f"{name} is {before!r} there, {after!r} here"
        for (name, _, before), (_, _, after) in pairs
        if before != after and not _is_free(name, new)
    ]


def _is_free(name: str, config: TrainConfig) -> bool:
    section, _, key = name.partition(".")
    if key == "micro_batch_tokens" and config.algorithm.reduction == "micro-batch-mean":
        return False  # the one reduction that depends on how a batch is cut
    return key in FREE_ON_RESUME.get(section, ())


def schedule_change(old: TrainConfig, new: TrainConfig, step: int) -> str:
    """A warning that another run.num_steps changes the learning rate after `step`; empty if it does not."""
    before, after = old.run.num_steps, new.run.num_steps
    if before == after or new.optimizer.schedule == "constant":
        return ""
    return (
        f"run.num_steps was {before} and is {after}: from step {step + 1} on the {new.optimizer.schedule} schedule is "
        f"that of {after} steps, so the run is not the one that {after} steps from the start would have made"
    )
