r"""The tree of an answer, and what can be told from its shape.

A tree is a tuple (kind, …): ("number", Fraction), ("symbol", name), ("words", text), ("based", digits, base),
("add" | "pm" | "mp" | "mul" | "div" | "pow", left, right), ("neg", tree), ("call", function, argument, …),
("unit", tree, name), ("group", opening, closing, item, …), ("relation", (operators), item, …), ("matrix", kind, row, …)
of ("row", item, …), ("series", "sum" | "prod", name, first, last, body), and ("lor" | "land" | "cup" | "cap" |
"setminus", left, right). A bare list is a group with empty brackets.
"""

from itertools import product

Tree = tuple
MAX_SIGNS = 4  # plus-minus signs of one element


class Unreadable(ValueError):
    """The text is not an answer of this grammar, or its value is out of reach."""


def depth(tree: Tree) -> int:
    """The number of levels; computed without recursion."""
    level, num_levels = [tree], 0
    while level:
        level = [part for parent in level for part in parent if isinstance(part, tuple)]
        num_levels += 1
    return num_levels


def symbols(tree: Tree) -> set[str]:
    """Names of the variables; e, i, pi are numbers."""
    if tree[0] == "symbol":
        return set() if tree[1] in ("e", "i", "pi") else {tree[1]}
    found = set().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple) and part))
    return found - {tree[2]} if tree[0] == "series" else found


def units_of(tree: Tree) -> frozenset[str]:
    """The units that stand anywhere in `tree`."""
    inner = frozenset().union(*(units_of(part) for part in tree if isinstance(part, tuple) and part))
    return inner | {tree[2]} if tree[0] == "unit" else inner


def signed(tree: Tree) -> list[Tree]:
    r"""`tree` with every sign of its `\pm` in turn; `\mp` is the opposite of all `\pm` beside it."""
    num_plus_minus, num_minus_plus = _count(tree, "pm"), _count(tree, "mp")
    if num_plus_minus + num_minus_plus > MAX_SIGNS:
        raise Unreadable("too many signs")
    if num_minus_plus:
        choices = [(sign,) * num_plus_minus + (sign,) for sign in (1, -1)]
    else:
        choices = [(*signs, 1) for signs in product((1, -1), repeat=num_plus_minus)]
    return [_choose(tree, list(signs)) for signs in choices]


def _count(tree: Tree, kind: str) -> int:
    return (tree[:1] == (kind,)) + sum(_count(part, kind) for part in tree if isinstance(part, tuple))


def _choose(tree: Tree, signs: list[int]) -> Tree:
    """`tree` with the next of `signs` at every plus-minus; the last one is left for minus-plus."""
    if tree[:1] not in (("pm",), ("mp",)):
        return tuple(_choose(part, signs) if isinstance(part, tuple) else part for part in tree)
    sign = signs.pop(0) if tree[0] == "pm" else -signs[-1]
    left, right = _choose(tree[1], signs), _choose(tree[2], signs)
    return ("add", left, right if sign > 0 else ("neg", right))
