"""The procedural datasets of reasoning-gym, by name: `reasoning-gym:leg_counting`.

The reward is the dataset's own `score_answer`, between 0 and 1. It judges what stands in the last
`<answer>...</answer>` of the completion, or the whole stripped text where there is none.

Some of those scorers run text as Python, by `eval` or by sympy's parser: the model's answer, or fields of an entry,
which may come from a data file. In their modules `eval` is replaced by `ast.literal_eval` or by a calculator of whole
numbers, and only formulas reach sympy's parser.
"""

import ast
import difflib
import operator
import re
import sys
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from .gym_entries import entries_of
from .problem import Problem, Score, TaskKind, content_id, with_different_ids
from .rows import require_text

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

DEFAULT_SIZE = 1000  # problems of a split that asks for all: the generators never end
INSTRUCTION = "Write your final answer between <answer> and </answer>."

# Item i of a reasoning-gym dataset is drawn from Random(seed + i): the seeds of splits must lie far apart.
_SEED_STRIDE = 10_000_000
_SPLIT_SEED = {"train": 0, "validation": 1, "test": 2}

EVAL_SCORERS = {"string_insertion", "spiral_matrix", "binary_matrix", "n_queens", "number_sorting"}
CALCULATING_SCORERS = {"bitwise_arithmetic"}
MAX_BITS = 100_000  # of a number in such an expression
SYMPY_SCORERS = {"simple_integration", "intermediate_integration", "polynomial_multiplication", "puzzle24", "countdown"}
# What of an entry those parse: a path of keys.
SYMPY_FIELDS = {
    "simple_integration": ("metadata", "integrand"),
    "intermediate_integration": ("metadata", "integrand"),
    "polynomial_multiplication": ("answer",),
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
        entry = _like(_template(self.dataset), entry)
        try:
            value = float(_dataset(self.dataset).score_answer(answer, entry))
        except (MemoryError, RecursionError, ImportError):
            raise  # the pool's to name: no fault of the text
        except Exception as error:  # scorers parse the answer without care for text that is none
            return Score(0.0, f"error: {type(error).__name__}")
        return Score(value, "ok" if value >= 1.0 else "partial" if value > 0.0 else "different", answer)


def gym_kind(dataset: str) -> TaskKind:
    """The task of one reasoning-gym dataset; ValueError names the nearest datasets, or the package to install."""
    known = known_datasets()
    if dataset not in known:
        near = difflib.get_close_matches(dataset, known, n=3, cutoff=0.4)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(sorted(known))}."
        raise ValueError(f"reasoning-gym has no dataset {dataset!r}.{hint}")

    def generate(config: "TaskConfig", split: str) -> list[Problem]:
        return generate_problems(dataset, config.seed, split, getattr(config, f"num_{split}") or DEFAULT_SIZE)

    return TaskKind(
        reward=GymReward(dataset),
        read_prompt=read_prompt,
        read_row=partial(read_row, dataset=dataset),
        template="none",
        instruction=INSTRUCTION,
        packages=("reasoning-gym",),
        generate=generate,
    )


def generate_problems(dataset: str, seed: int, split: str, count: int) -> list[Problem]:
    """`count` problems; no two splits and no two seeds share a random source (at most ten million problems each)."""
    base = (seed * len(_SPLIT_SEED) + _SPLIT_SEED[split]) * _SEED_STRIDE % 2**32
    entries = entries_of(dataset, base, count)
    problems = [Problem(content_id(e["question"], {"entry": e}), e["question"], {"entry": e}) for e in entries]
    return with_different_ids(problems)


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


def read_row(fields: dict, where: str, *, dataset: str) -> dict:
    """A stored entry (`question`, `answer`, `metadata`), or the one in the field `entry`.

    Raises ValueError where a part is missing, or where a scorer would run a text that is no formula.
    """
    entry = fields.get("entry", fields)
    missing = [name for name in ("question", "answer", "metadata") if name not in entry]
    if missing:
        raise ValueError(f"{where}: no field {missing[0]!r} of a reasoning-gym entry; the row has {sorted(entry)}")
    evaluated = entry
    for key in SYMPY_FIELDS.get(dataset, ()):
        evaluated = evaluated.get(key, "") if isinstance(evaluated, dict) else evaluated
    if dataset in SYMPY_FIELDS and not (isinstance(evaluated, str) and _FORMULA.fullmatch(evaluated)):
        field = ".".join(SYMPY_FIELDS[dataset])
        raise ValueError(f"{where}: {field!r} must be a formula, which sympy will read; found {evaluated!r:.80}")
    return {"entry": {name: entry[name] for name in ("question", "answer", "metadata")}}


def _like(template: Any, value: Any) -> Any:
    """`value` with tuples and whole-number keys where the dataset's own entries have them, which JSON has not."""
    if isinstance(template, dict) and isinstance(value, dict):
        has_numbers = bool(template) and all(isinstance(key, int) for key in template)
        some = next(iter(template.values()), None)
        keys = {key: int(key) if has_numbers and re.fullmatch(r"-?\d+", str(key)) else key for key in value}
        return {keys[key]: _like(template.get(keys[key], some), item) for key, item in value.items()}
    if isinstance(template, list | tuple) and isinstance(value, list | tuple):
        items = [_like(template[min(i, len(template) - 1)] if template else None, v) for i, v in enumerate(value)]
        return tuple(items) if isinstance(template, tuple) else items
    return value


def calculate(text: str) -> int:
    """The value of an expression of whole numbers, + - * & | ^ ~ << >> and parentheses. ValueError for others."""
    return _calculated(ast.parse(text.strip(), mode="eval").body)


_OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_, ast.BitXor: operator.xor, ast.LShift: operator.lshift, ast.RShift: operator.rshift,
    ast.USub: operator.neg, ast.UAdd: operator.pos, ast.Invert: operator.invert,
}  # fmt: skip


def _calculated(node: ast.expr) -> int:
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_calculated(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _calculated(node.left), _calculated(node.right)
        grown = right if isinstance(node.op, ast.LShift) else right.bit_length()
        if left.bit_length() + grown > MAX_BITS:
            raise ValueError(f"a number of more than {MAX_BITS} bits")
        return _OPERATORS[type(node.op)](left, right)
    raise ValueError(f"{ast.dump(node):.80} is no arithmetic of whole numbers")


def known_datasets() -> dict:
    """Name → class of every dataset. ValueError that names the package to install."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ValueError(
            "tasks named reasoning-gym:<dataset> need: pip install '.[tasks]' in fastrl's clone"
        ) from error
    return DATASETS


@cache
def _dataset(name: str) -> Any:
    from reasoning_gym import create_dataset

    dataset = create_dataset(name)
    shadow = ast.literal_eval if name in EVAL_SCORERS else calculate if name in CALCULATING_SCORERS else None
    if shadow:
        sys.modules[type(dataset).__module__].eval = shadow  # in place of the builtin, in that module only
    return dataset


@cache
def _template(name: str) -> dict:
    """An entry as the dataset makes it, whose types those read from JSON should have."""
    from reasoning_gym import create_dataset

    return create_dataset(name, size=1, seed=0)[0]
