"""Tasks: where prompts and rewards come from.

    countdown                 arithmetic puzzles, generated or from JSON lines
    countdown-told            the same, with demonstrations of second tries after a critique
    countdown-values          the same; samples vote on values
    countdown-abstain         the same, some without a solution, which a completion may say
    countdown-confidence      the same, with a stated confidence
    countdown-words           the same in words, with division, for pretrained models
    math                      JSON lines or a Hugging Face dataset with `problem` and `answer`
    reasoning-gym:<dataset>   the procedural datasets of the reasoning-gym package
    twenty-questions          an environment: guess a thing by asking about it
    tagged-questions          the same, in turns that say what they are for
    verifiers:<taskset>       an environment of the verifiers library; openenv:<module>:<app>, one of OpenEnv
    <module>:<function>       your own reward over JSON lines, or <module>:<class>, your own environment

A task of its own is one file here and one line in `choose.TASKS`. Rewards run in the worker processes of `verifier/`.
The answers that `math` compares are read by `math_answers/`; other libraries' environments are played by `bridges/`;
`listing` is `fastrl tasks`. `reward_rules` makes other rewards of a task's verdicts.

Nothing in this package imports torch or transformers: verifier workers import it and must stay light.
"""

from .choose import find_kind, load_task
from .problem import Environment, Problem, Reward, Score, Task, TaskKind, TurnLimits

__all__ = [
    "Environment",
    "Problem",
    "Reward",
    "Score",
    "Task",
    "TaskKind",
    "TurnLimits",
    "find_kind",
    "load_task",
]
