r"""Sets of real numbers: intervals, unions, and what linear inequalities in one variable say.

`x<3` and `(-\infty,3)` are the same set, as are `-2\le x\le7` and `x\in[-2,7]`, or `x\ne0` and
`(-\infty,0)\cup(0,\infty)`. A set is a sorted tuple of intervals that neither overlap nor touch. Its ends are trees,
which are compared exactly.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from .exact import Undefined
from .trees import Tree, Unreadable, symbols
from .values import DIGITS, are_equal, evaluate, evaluate_inexactly

_INFINITY = ("symbol", "infty")
_ENDLESS = (("neg", _INFINITY), _INFINITY)
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "=": "=", "!=": "!="}


@dataclass(frozen=True)
class End:
    """One end of an interval: its value as a tree and as a number for sorting, and whether it belongs to the set."""

    tree: Tree
    position: Any
    is_closed: bool


@dataclass(frozen=True)
class RealSet:
    """`variable` is None where the set is written without one."""

    variable: str | None
    intervals: tuple[tuple[End, End], ...]


def is_set(tree: Tree) -> bool:
    """Whether `tree` is written as a set of reals or an inequality. Only such trees are read as sets."""
    if tree[0] == "relation":
        return any(operator != "=" for operator in tree[1])
    return tree[0] in ("cup", "cap", "setminus", "lor", "land") or tree[1:] in (("mathbb{R}",), ("emptyset",))


def read_set(tree: Tree) -> RealSet | None:
    """The set, or None where it is not a union of intervals with known ends."""
    try:
        return _read(tree)
    except (Unreadable, Undefined):
        return None


def are_equal_sets(left: RealSet, right: RealSet) -> bool:
    """Equal intervals; variables must agree where both are named."""
    if None not in (left.variable, right.variable) and left.variable != right.variable:
        return False
    if len(left.intervals) != len(right.intervals):
        return False
    ends = [zip(a, b, strict=True) for a, b in zip(left.intervals, right.intervals, strict=True)]
    return all(a.is_closed == b.is_closed and _same(a.tree, b.tree) for pair in ends for a, b in pair)


def _same(left: Tree, right: Tree) -> bool:
    return left == right or (left not in _ENDLESS and right not in _ENDLESS and are_equal(left, right))


def _read(tree: Tree) -> RealSet:
    kind = tree[0]
    if kind in ("cup", "lor"):
        return _combine(tree, lambda a, b: _merge([*a, *b]))
    if kind in ("cap", "land"):
        return _combine(tree, _intersect)
    if kind == "setminus":
        return _combine(tree, lambda a, b: _intersect(a, _complement(b)))
    if kind == "relation":
        return _read_relation(tree[1], tree[2:])
    if kind == "symbol" and tree[1] in ("mathbb{R}", "emptyset"):
        return RealSet(None, _complement(()) if tree[1] == "mathbb{R}" else ())
    if kind != "group":
        raise Unreadable("no set")
    opening, closing, *items = tree[1:]
    if opening == "\\{":
        return RealSet(None, _merge([(_end(item, True), _end(item, True)) for item in items]))
    if len(items) == 1 and (opening, closing) == ("(", ")"):
        return _read(items[0])
    if len(items) != 2 or not opening:
        raise Unreadable("no interval")
    low, high = _end(items[0], opening == "["), _end(items[1], closing == "]")
    if not low.position < high.position or any(end.is_closed and end.tree in _ENDLESS for end in (low, high)):
        raise Unreadable("an interval runs from its lower to its higher end")
    return RealSet(None, ((low, high),))


def _combine(tree: Tree, operation) -> RealSet:
    left, right = _read(tree[1]), _read(tree[2])
    if None not in (left.variable, right.variable) and left.variable != right.variable:
        raise Unreadable("two variables")
    return RealSet(left.variable or right.variable, tuple(operation(left.intervals, right.intervals)))


def _read_relation(operators: tuple[str, ...], items: tuple[Tree, ...]) -> RealSet:
    if operators == ("in",) and items[0][0] == "symbol":
        return replace(_read(items[1]), variable=items[0][1])
    names = {name for item in items for name in symbols(item) if name != "infty"}
    if len(names) != 1 or "in" in operators:
        raise Unreadable("not an inequality in one variable")
    (name,) = names
    intervals = _complement(())
    for operator, left, right in zip(operators, items, items[1:], strict=False):
        intervals = _intersect(intervals, _solve(operator, left, right, name))
    return RealSet(name, tuple(intervals))


def _solve(operator: str, left: Tree, right: Tree, name: str) -> list[tuple[End, End]]:
    """Where `left operator right` holds, linear in `name`."""
    for side, other in ((left, right), (right, left)):
        if other in _ENDLESS and side == ("symbol", name):
            return _complement(())
    difference = ("add", left, ("neg", right))
    at_zero, at_one = _put(difference, name, 0), _put(difference, name, 1)
    slope = ("add", at_one, ("neg", at_zero))
    for x in (Fraction(2), Fraction(-3), Fraction(5, 7), Fraction(1000)):
        if not are_equal(_put(difference, name, x), ("add", at_zero, ("mul", ("number", x), slope))):
            raise Unreadable("not linear")
    steepness = evaluate(slope, DIGITS[0])
    if steepness == 0 or steepness.imag:
        raise Unreadable("not an inequality in one variable")
    operator = operator if steepness.real > 0 else _MIRRORED[operator]
    zero = ("div", ("neg", at_zero), slope)
    point = [(_end(zero, True), _end(zero, True))]
    if operator in ("=", "!="):
        return point if operator == "=" else _complement(point)
    end, (low, high) = _end(zero, operator.endswith("=")), _complement(())[0]
    return [(low, end)] if operator[0] == "<" else [(end, high)]


def _put(tree: Tree, name: str, value: Fraction | int) -> Tree:
    if tree == ("symbol", name):
        return ("number", Fraction(value))
    return tuple(_put(part, name, value) if isinstance(part, tuple) else part for part in tree)


def _end(tree: Tree, is_closed: bool) -> End:
    while tree[0] == "group" and len(tree) == 4 and tree[1] == "(":
        tree = tree[3]
    if tree in _ENDLESS:
        return End(tree, float("inf") if tree == _INFINITY else float("-inf"), is_closed)
    position = evaluate_inexactly(tree)
    if position.imag:
        raise Unreadable("an end of an interval is real")
    return End(tree, position.real, is_closed)


def _merge(intervals) -> list[tuple[End, End]]:
    merged: list[tuple[End, End]] = []
    for low, high in sorted(intervals, key=lambda pair: (pair[0].position, not pair[0].is_closed)):
        last = merged[-1][1] if merged else None
        if last and (
            low.position < last.position or (low.position == last.position and (low.is_closed or last.is_closed))
        ):
            end = max(last, high, key=lambda end: (end.position, end.is_closed))
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((low, high))
    return merged


def _complement(intervals) -> list[tuple[End, End]]:
    low, result = End(_ENDLESS[0], float("-inf"), False), []
    for first, last in intervals:
        result.append((low, replace(first, is_closed=not first.is_closed)))
        low = replace(last, is_closed=not last.is_closed)
    result.append((low, End(_INFINITY, float("inf"), False)))
    return [pair for pair in result if _is_filled(*pair)]


def _intersect(left, right) -> list[tuple[End, End]]:
    pairs = [
        (
            max(a[0], b[0], key=lambda end: (end.position, not end.is_closed)),
            min(a[1], b[1], key=lambda end: (end.position, end.is_closed)),
        )
        for a in left
        for b in right
    ]
    return _merge([pair for pair in pairs if _is_filled(*pair)])


def _is_filled(low: End, high: End) -> bool:
    return low.position < high.position or (low.position == high.position and low.is_closed and high.is_closed)
