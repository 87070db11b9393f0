"""Countdown: reach a target with the given numbers, each used exactly once, and + - *.

A problem reads `3 5 7 2=24:`. Generated problems are all solvable pairs of four digits 1-9 (a multiset) and a target
1-99. The split of a pair is a hash of its sorted digits and target: no permutation of a held-out problem is trained
on, and the split is the same for every seed (about 80 % train, 10 % validation, 10 % test). The seed orders the
problems and the digits within a prompt.
"""

import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import combinations_with_replacement, islice, permutations, product
from random import Random
from typing import TYPE_CHECKING

from .countdown_critique import critique
from .expression import MAX_DIGITS, ExpressionError, combine, evaluate, parse_expression
from .problem import Problem, Score, TaskKind
from .rows import UnusableRow

if TYPE_CHECKING:
    from fastrl.config.schema import TaskConfig

MAX_NUMBERS = 16
NUM_DIGITS = 4
MAX_DRAWS_PER_PROBLEM = 20
TARGETS = range(1, 100)

_SPLIT_OF_BUCKET = ["train"] * 8 + ["validation", "test"]


def reward(prompt: str, completion: str, *, numbers: list[int], target: int) -> Score:
    """1.0 when the completion is one expression that uses exactly `numbers` and equals `target`.

    reason: ok | empty | syntax | numbers (not each exactly once) | value (not the target).
    """
    if not completion.strip(" "):
        return Score(0.0, "empty")
    try:
        used, postfix = parse_expression(completion)
    except ExpressionError:
        return Score(0.0, "syntax")
    answer = completion.replace(" ", "")
    if sorted(used) != sorted(numbers):
        return Score(0.0, "numbers", answer)
    return Score(1.0, "ok", answer) if evaluate(postfix) == target else Score(0.0, "value", answer)


def read_row(fields: dict, where: str) -> dict:
    """`numbers`, or `nums` (1 to 16 whole numbers), and `target` of a row; ValueError says what is wrong with it."""
    if "numbers" not in fields and "nums" in fields:
        fields = fields | {"numbers": fields["nums"]}
    for name in ("numbers", "target"):
        if fields.get(name) is None:
            raise UnusableRow(f"{where}: no field {name!r}; the row has {sorted(fields)}")
    numbers, target = fields["numbers"], fields["target"]
    if not isinstance(numbers, list) or not 1 <= len(numbers) <= MAX_NUMBERS or not all(map(_is_number, numbers)):
        raise ValueError(
            f"{where}: 'numbers' must be a list of 1 to {MAX_NUMBERS} whole numbers "
            f"from 0 to {10**MAX_DIGITS - 1}, found {numbers!r}"
        )
    if not isinstance(target, int) or isinstance(target, bool):
        raise ValueError(f"{where}: 'target' must be a whole number, found {target!r}")
    return {"numbers": numbers, "target": target}


def read_prompt(fields: dict, where: str) -> str:
    """The question of a row, its numbers in the order given."""
    row = read_row(fields, where)
    return write_prompt(row["numbers"], row["target"])


def write_prompt(numbers: Iterable[int], target: int) -> str:
    """The question's text: `3 5 7 2=24:`."""
    return f"{' '.join(map(str, numbers))}={target}:"


def generate(config: "TaskConfig", split: str) -> list[Problem]:
    """The first config.num_<split> problems of a stream of random expressions; 0: each of the split once.

    Easy targets are as frequent in a part of a split as in `demonstrations`; a whole split is harder.
    No validation or test problem comes twice; training problems may.
    """
    rng = Random(f"countdown {config.seed} {split}")
    everything = sorted(pair for pair, owner in solvable().items() if owner == split)
    count = getattr(config, f"num_{split}")
    if count == 0 or (split != "train" and count >= len(everything)):
        return [_problem(*pair, rng) for pair in rng.sample(everything, len(everything))]
    if split == "train":  # with repetitions: what is frequent among random expressions stays frequent
        drawn = islice(_random_expressions(rng, split), count)
        return [_problem(tuple(sorted(digits)), target, rng) for digits, target, _ in drawn]
    pairs: dict[tuple[tuple[int, ...], int], None] = {}  # an ordered set
    for digits, target, _ in islice(_random_expressions(rng, split), MAX_DRAWS_PER_PROBLEM * count):
        pairs[tuple(sorted(digits)), target] = None
        if len(pairs) == count:
            break
    pairs |= dict.fromkeys(rng.sample(everything, len(everything)))  # a split's rarest problems are hardly ever drawn
    return [_problem(*pair, rng) for pair in islice(pairs, count)]


def demonstrations(rng: Random, count: int) -> list[tuple[str, str]]:
    """`count` pairs (prompt, correct completion) of the train split, for the supervised warm start.

    An expression is drawn first: digits, their order, which neighbours to join, operators, each choice uniform. It is
    kept when its value is a target and the problem is in the train split, so easy targets are frequent. The prompt
    lists the digits in another random order.
    """
    expressions = islice(_random_expressions(rng, "train"), count)
    return [(write_prompt(rng.sample(digits, len(digits)), value), text) for digits, value, text in expressions]


def solutions(row: dict) -> list[str]:
    """All correct expressions, sorted, without spaces or needless parentheses; none for more than NUM_DIGITS numbers.

    `demonstrations` writes no other text for the problem.
    """
    if len(row["numbers"]) > NUM_DIGITS:
        return []
    orders = set(permutations(row["numbers"]))
    return sorted({text for order in orders for value, text, _ in _expressions(order) if value == row["target"]})


def _expressions(numbers: tuple[int, ...]) -> set[tuple[int, str, int]]:
    """Everything that `combine` can write with the numbers in this order."""
    if len(numbers) == 1:
        return {(numbers[0], str(numbers[0]), 3)}
    return {
        combine(operator, left, right)
        for cut in range(1, len(numbers))
        for left, right in product(_expressions(numbers[:cut]), _expressions(numbers[cut:]))
        for operator in "+-*"
    }


def _random_expressions(rng: Random, split: str) -> Iterator[tuple[list[int], int, str]]:
    """Endless (digits, value, text) of random expressions whose problem belongs to the split."""
    owners = solvable()
    while True:
        digits = rng.choices(range(1, 10), k=NUM_DIGITS)
        value, text = _random_expression(rng, digits)
        if owners.get((tuple(sorted(digits)), value)) == split:
            yield digits, value, text


@cache
def solvable() -> dict[tuple[tuple[int, ...], int], str]:
    """All solvable (sorted digits, target) -> the split that owns the pair. 20 thousand pairs; takes 0.1 s, once."""
    return {
        (digits, target): split_of(digits, target)
        for digits in combinations_with_replacement(range(1, 10), NUM_DIGITS)
        for target in sorted(_reachable(digits).intersection(TARGETS))
    }


def split_of(numbers: Iterable[int], target: int) -> str:
    """The split that owns a problem: the same for every order of its numbers, every seed and every machine."""
    key = f"{','.join(map(str, sorted(numbers)))}={target}"
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(_SPLIT_OF_BUCKET)
    return _SPLIT_OF_BUCKET[bucket]


@cache
def _reachable(numbers: tuple[int, ...]) -> frozenset[int]:
    """All values of expressions that use each of the sorted `numbers` exactly once."""
    if len(numbers) == 1:
        return frozenset(numbers)
    values: set[int] = set()
    # Bit i of the mask puts number i on the left; the last number stays on the right, so each cut is seen once.
    for mask in range(1, 1 << (len(numbers) - 1)):
        left = tuple(n for i, n in enumerate(numbers) if mask >> i & 1)
        right = tuple(n for i, n in enumerate(numbers) if not mask >> i & 1)
        for x in _reachable(left):
            for y in _reachable(right):
                values.update((x + y, x - y, y - x, x * y))
    return frozenset(values)


def _problem(digits: tuple[int, ...], target: int, rng: Random) -> Problem:
    numbers = rng.sample(digits, len(digits))
    name = f"countdown-{'-'.join(map(str, digits))}={target}"
    return Problem(id=name, prompt=write_prompt(numbers, target), row={"numbers": numbers, "target": target})


def _random_expression(rng: Random, numbers: list[int]) -> tuple[int, str]:
    parts = [(n, str(n), 3) for n in numbers]
    while len(parts) > 1:
        i = rng.randrange(len(parts) - 1)
        parts[i : i + 2] = [combine(rng.choice("+-*"), parts[i], parts[i + 1])]
    return parts[0][:2]


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 10**MAX_DIGITS


COUNTDOWN = TaskKind(
    reward=reward,
    read_prompt=read_prompt,
    read_row=read_row,
    template="none",
    generate=generate,
    demonstrations=demonstrations,
    solutions=solutions,
    critique=critique,
)
