r"""Whether two mathematical answers are the same value.

Answers with equal normal forms are equal. All others are parsed (`latex`) and compared by kind: numbers and expressions
by value (`values`), equations by their zeros, inequalities and intervals as sets (`sets`), tuples in order, lists and
sets in any order, matrices by entry, words as text. An answer that cannot be read equals only itself.

Equality is exact: a decimal is the rational number it spells, so `0.33` is not `\frac{1}{3}` and `0.5` is `\frac12`.
A unit may be missing on one side (the question named it) but not be another one. A percent sign is a unit: `50\%`
equals `50` (the question said "what percent") and also `0.5`, its value; `90^\circ` equals `90` and `\frac{\pi}{2}`.
`x=5` equals `5`; `\pm` stands for both values.
"""

import re
from collections.abc import Iterator
from itertools import pairwise

from .exact import Undefined
from .latex import parse
from .notation import comparison_key, normalise
from .sets import are_equal_sets, is_set, read_set
from .trees import Tree, Unreadable, signed, symbols, units_of
from .values import DIGITS, are_equal, evaluate, is_same, points

MAX_ELEMENTS = 64  # of a list whose order does not matter
_INTEGER = re.compile(r"-?\d{1,1000}", re.ASCII)
_CHOICE = re.compile(r"\(([A-J])\)(?=[^(=^_*+/,-])(?!\\cup)|([A-J])[.)](?=[^)])")


def is_equal(gold: str, answer: str) -> bool:
    """Whether `answer` has the value of `gold`; both as extracted."""
    if _INTEGER.fullmatch(gold) and _INTEGER.fullmatch(answer):
        return int(gold) == int(answer)
    gold, answer = normalise(gold), normalise(answer)
    if not gold or not answer:
        return False
    if _are_same_texts(gold, answer):
        return True
    label = _CHOICE.match(answer)
    if label:  # (B) 42
        letter, rest = label.group(1) or label.group(2), answer[label.end() :]
        return comparison_key(gold) == letter or is_equal(gold, rest.strip())
    try:
        return _are_same(parse(gold), parse(answer))
    except (Unreadable, Undefined):
        return False


def _are_same_texts(gold: str, answer: str) -> bool:
    r"""Equal normal forms; a `\text` also equals its bare content (`CBAD`), in any case where it is long (`EAST`)."""
    keys = comparison_key(gold), comparison_key(answer)
    if keys[0] == keys[1] or not (gold.startswith("\\text{") or answer.startswith("\\text{")):
        return keys[0] == keys[1]
    contents = [re.sub(r"^\\text\{([a-zA-Z]+)\}$", r"\1", text) for text in (gold, answer)]
    return contents[0] == contents[1] or (len(contents[0]) > 3 and contents[0].casefold() == contents[1].casefold())


def is_readable(text: str) -> bool:
    """Whether an answer is mathematics that can match in another spelling than its own."""
    try:
        return bool(parse(normalise(text)))
    except Unreadable:
        return False


def _are_same(gold: Tree, answer: Tree) -> bool:
    gold, answer = _open(gold), _open(answer)
    if is_set(gold) or is_set(answer):
        sets = read_set(gold), read_set(answer)
        if None not in sets:
            return are_equal_sets(*sets)
    gold_elements, answer_elements = list(_elements(gold)), list(_elements(answer))
    if len(gold_elements) > 1 or len(answer_elements) > 1 or "\\{" in (*gold[1:2], *answer[1:2]):
        return _are_same_lists(gold, gold_elements, answer, answer_elements)
    if "relation" in (gold[0], answer[0]):
        return _are_same_relations(gold, answer)
    if gold[0] != answer[0] and {gold[0], answer[0]} & {"words", "matrix", "based"}:
        return False
    if gold[0] == "words":
        return comparison_key(gold[1]) == comparison_key(answer[1])
    if gold[0] == "based":
        return gold == answer
    if gold[0] == "matrix":
        return _are_same_matrices(gold, answer)
    if _is_tuple(gold) or _is_tuple(answer):
        return _are_same_tuples(gold, answer)
    return _are_same_quantities(gold, answer)


def _open(tree: Tree) -> Tree:
    """`tree` without brackets around one element, and `(x,y)=(1,2)` as `x=1,y=2`."""
    while tree[0] == "group" and len(tree) == 4 and tree[1] == "(":
        tree = tree[3]
    if tree[0] == "relation" and tree[1] == ("=",) and _is_tuple(tree[2]) and _is_tuple(tree[3]):
        names, values = tree[2][3:], tree[3][3:]
        if len(names) == len(values) and all(name[0] == "symbol" for name in names):
            return ("group", "", "", *(("relation", ("=",), *pair) for pair in zip(names, values, strict=True)))
    return tree


def _is_tuple(tree: Tree) -> bool:
    return tree[0] == "group" and tree[1] in ("(", "[") and len(tree) > 4


def _elements(tree: Tree) -> Iterator[Tree]:
    """The elements of a list or set, every sign of a plus-minus written out; one for anything else."""
    if tree[0] == "group" and tree[1] in ("", "\\{"):
        for item in tree[3:]:
            yield from _elements(item)
    else:
        yield from signed(tree)


def _are_same_lists(gold: Tree, gold_elements: list[Tree], answer: Tree, answer_elements: list[Tree]) -> bool:
    if len(gold_elements) != len(answer_elements) and not (_is_tuple(gold) or _is_tuple(answer)):
        return False
    if max(len(gold_elements), len(answer_elements)) > MAX_ELEMENTS:
        raise Unreadable("too long a list")
    for named, other, elements in ((gold_elements, answer, answer_elements), (answer_elements, gold, gold_elements)):
        names = [_name(element) for element in named]
        if None not in names and len(set(names)) > 1 and all(_name(element) is None for element in elements):
            values = [element[-1] for _, element in sorted(zip(names, named, strict=True), key=lambda pair: pair[0])]
            items = other[3:] if _is_tuple(other) else elements
            return len(values) == len(items) and all(_are_same(*pair) for pair in zip(values, items, strict=True))
    left = list(answer_elements)
    for wanted in gold_elements:
        found = next((i for i, element in enumerate(left) if _are_same(wanted, element)), None)
        if found is None:
            return False
        del left[found]
    return not left


def _are_same_tuples(gold: Tree, answer: Tree) -> bool:
    if gold[:3] != answer[:3] or len(gold) != len(answer):
        return False
    return all(_are_same(g, a) for g, a in zip(gold[3:], answer[3:], strict=True))


def _are_same_matrices(gold: Tree, answer: Tree) -> bool:
    if gold[1] != answer[1] or [len(row) for row in gold[2:]] != [len(row) for row in answer[2:]]:
        return False
    rows = zip(gold[2:], answer[2:], strict=True)
    return all(are_equal(*pair) for g, a in rows for pair in zip(g[1:], a[1:], strict=True))


def _are_same_quantities(gold: Tree, answer: Tree) -> bool:
    units = units_of(gold), units_of(answer)
    if all(units) and units[0] != units[1]:
        return False
    if are_equal(gold, answer):
        return True
    has_scale = [bool(unit & {"percent", "degree"}) for unit in units]
    return has_scale[0] != has_scale[1] and are_equal(gold, answer, is_scaled=(True, True))


def _name(tree: Tree) -> str | None:
    """The name that `tree` gives a value to: `x` of `x=2`, `x=\\frac{4}{2}=2`; None for an equation or no relation."""
    if tree[0] != "relation" or set(tree[1]) != {"="}:
        return None
    name, *values = (_open(item) for item in tree[2:])
    if name[0] not in ("symbol", "words") or name[1] in ("e", "i", "pi"):
        return None
    if any(name[0] == "symbol" and name[1] in symbols(value) for value in values):
        return None
    return name[1] if all(_are_same(*pair) for pair in pairwise(values)) else None


def _are_same_relations(gold: Tree, answer: Tree) -> bool:
    if gold[0] != "relation" or answer[0] != "relation":
        relation, other = (gold, answer) if gold[0] == "relation" else (answer, gold)
        if relation[1] == ("in",) and relation[2][0] == "symbol":
            return _are_same(relation[3], other)
        is_chain = set(relation[1]) == {"="} and not any(symbols(item) for item in relation[2:])  # 2+3=5
        is_named = _name(relation) is not None or (
            is_chain and all(_are_same(*pair) for pair in pairwise(relation[2:]))
        )
        return is_named and _are_same(relation[-1], other)
    names = _name(gold), _name(answer)
    if None not in names and names[0] == names[1]:
        return _are_same(gold[-1], answer[-1])
    operators = gold[1], answer[1]
    if len(operators[0]) != 1 or len(operators[1]) != 1:
        return operators[0] == operators[1] and all(_are_same(*pair) for pair in zip(gold[2:], answer[2:], strict=True))
    return _have_same_zeros(gold, answer)


def _have_same_zeros(gold: Tree, answer: Tree) -> bool:
    """Whether left - right of both are constant multiples of each other: positive ones for `<`, any for `=`."""
    (gold_operator,), (answer_operator,) = gold[1], answer[1]
    sides = [("add", tree[2], ("neg", tree[3])) for tree in (gold, answer)]
    flips = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
    if gold_operator == flips.get(answer_operator):
        sides[1] = ("neg", sides[1])
    elif gold_operator != answer_operator or gold_operator == "in":
        return False
    names = sorted(symbols(sides[0]) | symbols(sides[1]))
    if not names:
        return False
    first, *others = points(names)
    scales = [evaluate(side, DIGITS[0], first) for side in sides]
    if 0 in scales or (any(scale.imag for scale in scales) and gold_operator != "="):
        return False
    if gold_operator in flips and (scales[0].real > 0) != (scales[1].real > 0):
        return False
    return all(_is_multiple(sides[0], sides[1], first, point) for point in others)


def _is_multiple(gold: Tree, answer: Tree, first: dict, point: dict) -> bool:
    """Whether gold(point) · answer(first) = answer(point) · gold(first)."""

    def cross(a: Tree, b: Tree):
        return lambda digits: evaluate(
            ("mul", ("known", evaluate(a, digits, point)), ("known", evaluate(b, digits, first))), digits
        )

    return is_same(cross(gold, answer), cross(answer, gold))
