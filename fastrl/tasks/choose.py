"""Which task a name asks for, and its problems. A task of its own is one file beside this one and a line in `TASKS`."""

import difflib
import importlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .custom import PYTHON, custom_kind, given_kind
from .problem import Problem, Task, TaskKind, TurnLimits, Weighted, content_id, with_different_ids
from .reward_rules import AS_IT_IS, find_rule
from .rows import UnusableRow, read_rows, with_columns
from .templates import TEMPLATES, has_system_prompt

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

# Name -> module:TaskKind. A name with a colon at its end is a family: module:function, called with what follows it.
TASKS = {
    "countdown": "fastrl.tasks.countdown:COUNTDOWN",
    "countdown-told": "fastrl.tasks.countdown_told:COUNTDOWN_TOLD",
    "countdown-values": "fastrl.tasks.countdown_values:COUNTDOWN_VALUES",
    "countdown-abstain": "fastrl.tasks.countdown_abstain:COUNTDOWN_ABSTAIN",
    "countdown-confidence": "fastrl.tasks.countdown_confidence:COUNTDOWN_CONFIDENCE",
    "countdown-words": "fastrl.tasks.countdown_words:COUNTDOWN_WORDS",
    "math": "fastrl.tasks.math:MATH",
    "twenty-questions": "fastrl.tasks.twenty_questions:TWENTY_QUESTIONS",
    "tagged-questions": "fastrl.tasks.tagged_questions:TAGGED_QUESTIONS",
    "reasoning-gym:": "fastrl.tasks.gym:gym_kind",
}
# Families whose names lead to a user's own module; called with what follows the name, and the folder to look in first.
BRIDGES = {
    "verifiers:": "fastrl.tasks.bridges.verifiers_tasks:verifiers_kind",
    "openenv:": "fastrl.tasks.bridges.openenv_tasks:openenv_kind",
}
OWN_NAMES = ("verifiers:<taskset>", "openenv:<module>:<app>", "<module>:<function>")
SPLITS = ("train", "validation", "test")
NOTHING = MappingProxyType({})
MAX_UNUSABLE = 0.01  # of the rows of a dataset; MATH train has 4 empty answers among 7500


def find_kind(name: str, reward_folder: str = "", given: Mapping[str, Callable] = NOTHING) -> TaskKind:
    """The kind of task that `name` asks for; ValueError names the nearest known one.

    reward_folder: of TaskConfig. given: rewards that were given as Python objects, by name.
    """
    if name.startswith(PYTHON):
        return given_kind(name, given)
    family, colon, dataset = name.partition(":")
    if place := TASKS.get(family + colon):
        found = _imported(place)
        return found(dataset) if colon else found
    if place := BRIDGES.get(family + colon):
        return _imported(place)(dataset, reward_folder)
    if colon:
        return custom_kind(name, reward_folder)
    known = [*(f"{name}<dataset>" if name.endswith(":") else name for name in TASKS), *OWN_NAMES]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown task {name!r}; known tasks: {', '.join(known)}.{hint}")


def _imported(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def load_task(config: "TaskConfig", splits: Sequence[str] = SPLITS, given: Mapping[str, Callable] = NOTHING) -> Task:
    """Read or generate the splits asked for; the others are empty.

    A split's source is config.train / .validation / .test. With train = "" the task's own generator makes every split
    that has no source; otherwise such a split is empty (generated problems could be among those of the training file).
    config.num_<split> keeps that many problems, 0 all: the first of a file, a seeded sample of what is generated.
    The reward is the task's verifier, whatever config.reward and config.rewards say (see `reward_rules.trained_by`).
    given: as for `find_kind`.
    Raises ValueError or FileNotFoundError with one message: file, line, offending value, what would be right.
    """
    kind = find_kind(config.name, config.reward_folder, given)
    if config.reward != AS_IT_IS:
        find_rule(config.reward)
    problems = {split: _load_split(kind, config, split) if split in splits else [] for split in SPLITS}
    return Task(
        name=config.name,
        reward=kind.reward,
        template=_resolve_template(config, kind, problems),
        instruction=config.instruction or kind.instruction,
        system_prompt=config.system_prompt,
        demonstrations=kind.demonstrations if not config.train else None,
        solutions=kind.solutions,
        limits=TurnLimits(config.max_turns, config.max_turn_tokens, config.max_reply_tokens, config.stop or kind.stop),
        critique=kind.critique,
        measures=kind.measures,
        read_confidence=kind.read_confidence,
        summed=_summed(config, kind, given),
        **problems,
    )


def _summed(config: "TaskConfig", kind: TaskKind, given: Mapping[str, Callable]) -> tuple[Weighted, ...]:
    """Of config.rewards, the task's own first; empty where there are none."""
    if not config.rewards:
        return ()
    weights = {config.name: config.rewards.get(AS_IT_IS, 1.0)} | config.rewards
    weights.pop(AS_IT_IS, None)
    if config.name in config.rewards:
        raise ValueError(
            f"task.rewards names the task's own reward {config.name!r}: its weight is that of {AS_IT_IS!r}"
        )
    short = [name.rpartition(":")[2] for name in weights]
    names = [s if short.count(s) == 1 else n.replace(":", ".") for s, n in zip(short, weights, strict=True)]
    kinds = [kind, *(find_kind(name, config.reward_folder, given) for name in config.rewards if name != AS_IT_IS)]
    pairs = zip(names, kinds, weights.values(), strict=True)
    return tuple(Weighted(name, one.reward, weight) for name, one, weight in pairs)


def _load_split(kind: TaskKind, config: "TaskConfig", split: str) -> Sequence[Problem]:
    source = getattr(config, split)
    count = getattr(config, f"num_{split}")
    if count < 0:
        raise ValueError(f"num_{split} = {count}: expected 0 (all) or a positive number of problems")
    if source:
        rows = read_rows(source, default_split=split)[: count or None]
        return _read_problems(kind, source, rows, config.columns)
    if kind.generate is not None and not config.train:
        problems = kind.generate(config, split)
        if split == "train" and not problems:
            raise ValueError(f"task {config.name!r} has no problem to train on")
        return problems
    if split == "train":
        raise ValueError(f"task {config.name!r} generates no problems: set train to a JSON-lines file or a dataset id")
    return []


def _read_problems(
    kind: TaskKind, source: str, rows: list[tuple[str, dict]], columns: Mapping[str, str]
) -> list[Problem]:
    """columns: of TaskConfig. A prompt that is named there is the prompt, whatever other columns are called."""
    problems, unusable = [], []
    for where, unnamed in rows:
        fields = with_columns(unnamed, columns, where)
        question = {"prompt": fields["prompt"]} if "prompt" in columns else fields
        try:
            row, prompt = kind.read_row(fields, where), kind.read_prompt(question, where)
        except UnusableRow as error:
            unusable.append(error)
            continue
        problems.append(Problem(content_id(prompt, row), prompt, row, where))
    if len(unusable) > MAX_UNUSABLE * len(rows):
        raise ValueError(f"{source}: {len(unusable)} of {len(rows)} rows cannot be used, the first: {unusable[0]}")
    if unusable:
        warnings.warn(f"{source}: skipped {len(unusable)} of {len(rows)} rows, the first: {unusable[0]}", stacklevel=4)
    return with_different_ids(problems)


def _resolve_template(config: "TaskConfig", kind: TaskKind, problems: Mapping[str, Sequence[Problem]]) -> str:
    """auto: the task's own; chat where prompts are messages, or where the task's own has no place for what the system
    says. ValueError for an unknown template, and for one without such a place that was asked for."""
    template = kind.template if config.template == "auto" else config.template
    if template not in TEMPLATES and template != "chat":
        known = ["auto", "chat", *TEMPLATES]
        near = difflib.get_close_matches(template, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown template {template!r}; expected one of {', '.join(known)}.{hint}")
    is_lost = bool(config.system_prompt) and not has_system_prompt(template)
    if config.template == "auto":
        are_messages = any(split and not isinstance(split[0].prompt, str) for split in problems.values())
        return "chat" if are_messages or is_lost else template
    if is_lost:
        raise ValueError(
            f"task.system_prompt has no place in task.template = {template!r}: expected chat, or auto, which is chat "
            "then"
        )
    return template
