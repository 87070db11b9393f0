"""The procedural datasets of reasoning-gym, by name: `reasoning-gym:leg_counting`.

The reward is the dataset's own `score_answer`, between 0 and 1, on what stands in the last `<answer>...</answer>` of
the completion, or else on the whole stripped text. A few of those scorers run the answer as Python, by `eval` or by
sympy's parser; here the first get `ast.literal_eval` in its place, the others see nothing but formulas.
"""

import ast
import difflib
import re
import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from .problem import Problem, Score, TaskKind
from .rows import require_text

if TYPE_CHECKING:
    from fastrl.config import TaskConfig

DEFAULT_SIZE = 1000  # problems of a split that asks for all: the generators never end
INSTRUCTION = "Write your final answer between <answer> and </answer>."

# Item i of a reasoning-gym dataset is drawn from Random(seed + i): the seeds of splits must lie far apart.
_SEED_STRIDE = 10_000_000
_SPLIT_SEED = {"train": 0, "validation": 1, "test": 2}

EVAL_SCORERS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens"}
SYMPY_SCORERS = {
    "simple_integration",
    "intermediate_integration",
    "polynomial_multiplication",
    "puzzle24",
    "countdown",
}
# Numbers, operators, one-letter names and a few functions: no quote, bracket, underscore or attribute.
_FORMULA = re.compile(
    r"(?:[0-9+\-*/^() ]|\.(?=[0-9])|"
    r"(?<![A-Za-z])(?:[A-Za-z]|pi|exp|log|sqrt|a?(?:sin|cos|tan)h?)(?![A-Za-z0-9]))*"
)


@dataclass(frozen=True)
class GymReward:
    """`reward(prompt, completion, entry=...)` by the dataset's `score_answer`.

    reason: ok (a score of 1) | partial | different | empty | not a formula | error (the scorer could not read it).
    """

    dataset: str

    def prepare(self) -> None:
        """Import reasoning-gym and make the dataset object, once per worker."""
        _dataset(self.dataset)

    def __call__(self, prompt: str, completion: str, *, entry: dict) -> Score:
        if not completion.strip():
            return Score(0.0, "empty")
        answer = extract_answer(completion)
        if self.dataset in SYMPY_SCORERS and not _FORMULA.fullmatch(answer):
            return Score(0.0, "not a formula")
        try:
            value = float(_dataset(self.dataset).score_answer(answer, entry))
        except (MemoryError, RecursionError, ImportError):
            raise  # the pool's to name: no fault of the text
        except Exception as error:  # scorers parse the answer without care for text that is none
            return Score(0.0, f"error: {type(error).__name__}")
        return Score(value, "ok" if value >= 1.0 else "partial" if value > 0.0 else "different", answer)


def gym_kind(dataset: str) -> TaskKind:
    """The task of one reasoning-gym dataset; ValueError names the nearest datasets, or the package to install."""
    known = _known_datasets()
    if dataset not in known:
        near = difflib.get_close_matches(dataset, known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(sorted(known))}."
        raise ValueError(f"reasoning-gym has no dataset {dataset!r}.{hint}")

    def generate(config: "TaskConfig", split: str) -> list[Problem]:
        return generate_problems(dataset, config.seed, split, getattr(config, f"num_{split}") or DEFAULT_SIZE)

    return TaskKind(
        reward=GymReward(dataset),
        read_prompt=read_prompt,
        read_row=read_row,
        template="none",
        instruction=INSTRUCTION,
        generate=generate,
    )


def generate_problems(dataset: str, seed: int, split: str, count: int) -> list[Problem]:
    """`count` problems; no two splits and no two seeds share a random source (at most ten million problems each)."""
    from reasoning_gym import create_dataset

    base = (seed * len(_SPLIT_SEED) + _SPLIT_SEED[split]) * _SEED_STRIDE % 2**32
    try:
        dataset_object = create_dataset(dataset, size=count, seed=base)
        entries = [dataset_object[i] for i in range(count)]
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym:{dataset} cannot be made with its default settings: {error}") from error
    return [
        Problem(id=f"{dataset}-{split}-{seed}-{i}", prompt=entry["question"], row={"entry": entry})
        for i, entry in enumerate(entries)
    ]


def extract_answer(completion: str) -> str:
    """What stands in the last <answer>...</answer>, or else the whole text; stripped."""
    end = completion.rfind("</answer>")
    start = completion.rfind("<answer>", 0, max(end, 0))
    if start < 0:
        return completion.strip()
    return completion[start + len("<answer>") : end].strip()


def read_prompt(fields: dict, where: str) -> str:
    """The question of a stored entry."""
    return require_text(fields, ("question",), where)


def read_row(fields: dict, where: str) -> dict:
    """A stored entry (`question`, `answer`, `metadata`), or one under the name `entry`."""
    entry = fields.get("entry", fields)
    missing = [name for name in ("question", "answer", "metadata") if name not in entry]
    if missing:
        raise ValueError(f"{where}: no field {missing[0]!r} of a reasoning-gym entry; the row has {sorted(entry)}")
    return {"entry": {name: entry[name] for name in ("question", "answer", "metadata")}}


def _known_datasets() -> dict:
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError("tasks named reasoning-gym:<dataset> need: pip install 'fastrl[tasks]'") from error
    return DATASETS


@cache
def _dataset(name: str) -> Any:
    from reasoning_gym import create_dataset

    dataset = create_dataset(name)
    if name in EVAL_SCORERS:
        sys.modules[type(dataset).__module__].eval = ast.literal_eval  # shadows the builtin in that module only
    return dataset
