"""What `--help` of a command with a config shows: the settings that people change, and where the others are."""

from dataclasses import fields, is_dataclass
from typing import Any

from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig

TRAIN = {
    "model.path": "folder or hub id of the model; needed",
    "task.name": "countdown, math, reasoning-gym:NAME, or your module:function",
    "task.train": "JSON lines or a hub dataset; empty: the task makes its own problems",
    "task.timeout_s": "seconds a reward may take for one completion",
    "algorithm.objective": "how rewards become credit: nsr, psr, w-reinforce, grpo, rloo, dr-grpo, …",
    "optimizer.lr": "learning rate",
    "batch.prompts_per_step": "prompts a step",
    "batch.rollouts_per_prompt": "completions of each prompt",
    "sampler.max_new_tokens": "longest completion; a cut one counts as wrong",
    "run.num_steps": "steps",
    "run.folder": "where the run goes",
    "evaluation.every": "evaluate every n steps; 0: at the end only",
}
PLAN = {
    "model.path": "folder or hub id of the model; needed",
    "model.gradient_checkpointing": "less memory, more time",
    "model.lora_rank": "adapters of this rank on a frozen model; 0: train all parameters",
    "optimizer.kind": "adamw, adamw-bf16, adamw-8bit: 12, 8, 2 bytes a parameter",
    "batch.micro_batch_tokens": "tokens of one forward and backward",
    "batch.prompts_per_step": "prompts a step",
    "batch.rollouts_per_prompt": "completions of each prompt",
    "sampler.max_new_tokens": "longest completion",
}
EVAL = {
    "model.path": "folder or hub id of the model; needed",
    "task.name": "countdown, math, reasoning-gym:NAME, your module:function",
    "task.test": "JSON lines or a hub dataset; empty: the task makes its own problems",
    "evaluation.split": "test, validation or train",
    "evaluation.num_samples": "completions of each problem: pass@k for k = 1, 2, 4, … up to this",
    "evaluation.temperature": "0: greedy",
    "sampler.max_new_tokens": "longest completion",
    "output": "where the evaluation goes; the figure lies beside it",
    "base": "an earlier evaluation to compare with",
}
WARMUP = {
    "model.path": "folder or hub id of the model; empty: a new small one",
    "task.name": "whose demonstrations: countdown, twenty-questions, tagged-questions",
    "data.file": "JSON lines with prompt and completion; empty: the task's own",
    "data.num_steps": "steps",
    "data.batch_size": "demonstrations a step",
    "optimizer.lr": "peak learning rate",
    "output": "folder of the trained model",
}
TRAIN_NOTES = """
  --resume          go on from the newest sound checkpoint of run.folder
  --accept-changes  with --resume: although data or reward are not the same any more

A step's line: `+12 −8 0:12` counts its rollouts by the sign of their credit: 12 are reinforced, 8 are
suppressed, 12 teach nothing. The default objective, nsr, suppresses what is wrong, reinforces nothing.
"""
PLAN_NOTES = """
  --device cuda --memory-gib 80 --card H100 --ranks 8   plan for another machine than this one
"""
FIRST: dict[str, tuple[type, dict[str, str], str]] = {
    "train": (TrainConfig, TRAIN, TRAIN_NOTES),
    "plan": (TrainConfig, PLAN, PLAN_NOTES),
    "eval": (EvalConfig, EVAL, ""),
    "warmup": (WarmupConfig, WARMUP, ""),
}


def first_help(name: str) -> str:
    """One screen of help: usage, the first settings with their defaults, notes, where the rest is."""
    config_class, settings, notes = FIRST[name]
    config = config_class()
    flags = {setting: f"--{setting.replace('_', '-')} {_default(config, setting)}" for setting in settings}
    width = max(map(len, flags.values()))
    sections = ", ".join(field.name for field in fields(config) if is_dataclass(getattr(config, field.name)))
    return "\n".join(
        [
            f"usage: fastrl {name} CONFIG.toml [--section.key value …]",
            "\nWhat people change first, with the defaults:",
            *(f"  {flags[setting]:{width}}  {text}" for setting, text in settings.items()),
            notes,
            f"Sections: {sections}.",
            f"fastrl {name} --help-all lists every setting, fastrl settings explains them.",
        ]
    )


def _default(config: Any, setting: str) -> str:
    for key in setting.split("."):
        config = getattr(config, key)
    return "…" if config == "" else f"{config:g}" if isinstance(config, float) else str(config)
