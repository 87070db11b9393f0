r"""A parser for the LaTeX of final answers: from normal form (`notation.normalise`) to a tree (`trees`).

A parser that skips what it does not know makes different answers equal: `x_1` and `x`, `|x|` and `x`, `5 \text{ more}`
and `5`. This one accounts for every token or raises Unreadable. An answer that it refuses can still match as text.

    answer   = logic {"," logic}                          logic    = relation {("\lor" | "\land") relation}
    relation = union {("=" | "<" | "\le" | "\in" | …) union}    union = sum {("\cup" | "\cap" | "\setminus") sum}
    sum      = [sign] term {sign term}, sign + - \pm \mp     term  = factor {["\cdot" | "/"] factor} [unit]
    factor   = atom {"^" exponent | "!" | "%" | "\degree"}
"""

import re
from fractions import Fraction

from .tokens import FUNCTIONS, LETTERS, LISTED, MARKS, TokenStream, read_number, read_tokens
from .trees import Tree, Unreadable, depth
from .units import read_units

MAX_LENGTH = 600  # characters that are parsed; longer answers must match as text
MAX_NESTING = 24
MAX_DEPTH = 120  # of the tree: a long sum is a deep one

_RELATIONS = {"=": "=", "<": "<", ">": ">", "\\le": "<=", "\\ge": ">=", "\\ne": "!=", "\\in": "in"}
_NAME = re.compile(r"(?<![^,])[A-Zpqrsuvy]\([a-zA-Z](?:,[a-zA-Z])*\)(?==)")  # P(A)=


def parse(text: str) -> Tree:
    """The tree of an answer in normal form. Raises Unreadable."""
    if len(text) > MAX_LENGTH:
        raise Unreadable(f"longer than {MAX_LENGTH} characters")
    if re.fullmatch(r"[a-zA-Z][a-z]{2,}|[nN]o", text):
        return ("words", text)  # a product of letters would make east and seat equal
    parser = _Parser(read_tokens(_NAME.sub(r"\\text{\g<0>}", text)))
    tree = parser.answer()
    if parser.peek() is not None:
        raise Unreadable(f"unexpected {parser.peek()!r}")
    if depth(tree) > MAX_DEPTH:
        raise Unreadable("too long an expression")
    return tree


class _Parser(TokenStream):
    """Recursive descent; `depth` bounds the recursion, and `bars` counts the open `|`, which the next `|` closes."""

    def __init__(self, tokens: list[str]):
        super().__init__(tokens)
        self.depth = self.bars = 0

    def answer(self) -> Tree:
        items = self.items()
        return items[0] if len(items) == 1 else ("group", "", "", *items)

    def items(self) -> list[Tree]:
        items = [self.logic()]
        while self.take(",", ";"):
            items.append(self.logic())
        return items

    def logic(self) -> Tree:
        return self.chain(self.relation, ("\\lor", "\\land"))

    def union(self) -> Tree:
        return self.chain(self.sum, ("\\cup", "\\cap", "\\setminus"))

    def chain(self, part, operators: tuple[str, ...]) -> Tree:
        tree, first = part(), None
        while operator := self.take(*operators):
            if operator != (first := first or operator):
                raise Unreadable("operators of sets or logic are mixed without brackets")
            tree = (operator[1:], tree, part())
        return tree

    def relation(self) -> Tree:
        items, operators = [self.union()], []
        while operator := self.take(*_RELATIONS):
            operators.append(_RELATIONS[operator])
            items.append(self.union())
        return ("relation", tuple(operators), *items) if operators else items[0]

    def sum(self) -> Tree:
        tree = self.signed(self.take("+", "-", "\\pm", "\\mp"))
        while sign := self.take("+", "-", "\\pm", "\\mp"):
            term = self.term()
            tree = (sign[1:], tree, term) if sign[0] == "\\" else ("add", tree, ("neg", term) if sign == "-" else term)
        return tree

    def signed(self, sign: str | None) -> Tree:
        term = self.term()
        if sign in ("\\pm", "\\mp"):
            return (sign[1:], ("number", Fraction(0)), term)
        return ("neg", term) if sign == "-" else term

    def term(self) -> Tree:
        tree = self.factor()
        while True:
            if self.take("\\cdot"):
                tree = ("mul", tree, self.signed_factor())
            elif self.take("/"):
                tree = ("div", tree, self.signed_factor())
                if self.starts_factor() and not (tree[1][0] == tree[2][0] == "number"):
                    raise Unreadable("a/bc: what is divided?")
            elif (self.peek() or "").startswith("\\text{"):
                return self.with_unit(tree)
            elif self.starts_factor():
                if re.match(r"[\d.]", self.peek()) and tree[0] in ("number", "neg"):
                    raise Unreadable("two numbers side by side")
                tree = ("mul", tree, self.factor())
            else:
                return tree

    def with_unit(self, tree: Tree) -> Tree:
        units = read_units(self.take()[6:-1])
        if units is None:
            raise Unreadable("words that are no unit")
        factor, name = units
        tree = tree if factor == 1 else ("mul", tree, ("number", factor))
        return ("unit", tree, name) if name else tree

    def signed_factor(self) -> Tree:
        return ("neg", self.factor()) if self.take("-") else self.factor()

    def starts_factor(self) -> bool:
        token = self.peek()
        if token is None or token == "|":
            return token == "|" and self.bars == 0
        if token[0] == "\\":
            name = token[1:]
            starts = (*FUNCTIONS, *LISTED, *LETTERS, "frac", "sqrt", "binom", "lfloor", "lceil", "sum", "prod", "angle")
            return name in starts or token.startswith(("\\begin{", "\\mathbb{")) or name in MARKS
        return bool(re.match(r"[\d.a-zA-Z({]", token)) or (token == "[" and self.bars == 0)

    def factor(self) -> Tree:
        tree = self.atom()
        while True:
            if self.take("^"):
                tree = ("pow", tree, self.exponent())
            elif self.take("!"):
                if self.peek() == "!":
                    raise Unreadable("double factorial")
                tree = ("call", "factorial", tree)
            elif self.take("%"):
                tree = ("unit", tree, "percent")
            elif self.take("\\degree"):
                tree = ("unit", tree, "degree")
            else:
                return tree

    def exponent(self) -> Tree:
        if self.take("{"):
            tree = self.sum()
            self.need("}")
            return tree
        sign = self.take("-")
        if self.peek() in (None, "\\frac") or not self.starts_factor():
            raise Unreadable("an exponent is missing")
        power = self.atom()
        return ("neg", power) if sign else power

    def atom(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise Unreadable("nested too deeply")
        tree = self.operand(self.take())
        self.depth -= 1
        return tree

    def operand(self, token: str | None) -> Tree:
        if token is None:
            raise Unreadable("the answer ends too early")
        if self.peek() == "_" and re.fullmatch(r"(?=.*[A-F])[\dA-F]{2,}", token):
            self.take("_")
            return ("based", token, self.raw_subscript())
        if token[0].isdecimal() or (token[0] == "." and len(token) > 1):
            return self.number(token)
        if re.fullmatch(r"[a-zA-Z]|[A-Z]{2,}", token):
            return self.symbol(token)
        if token in ("(", "[", "\\{", "{"):
            return self.group(token)
        if token == "|":
            self.bars += 1
            tree = self.sum()
            self.bars -= 1
            self.need("|")
            return ("call", "abs", tree)
        if token.startswith("\\begin{"):
            return self.matrix(token[7:-1])
        if token.startswith("\\text{"):
            return ("words", token[6:-1])
        return self.command(token[1:]) if token[0] == "\\" else self.refuse(token)

    def number(self, token: str) -> Tree:
        value = ("number", read_number(token))
        if self.take("_"):
            base = self.raw_subscript()
            return value if base == "10" else ("based", token, base)
        if self.peek() != "\\frac" or not token.isdecimal():
            return value
        fraction = self.atom()
        if fraction[1][0] != "number" or fraction[2][0] != "number":
            return ("mul", value, fraction)
        part = fraction[1][1] / fraction[2][1] if fraction[2][1] else 0
        if not 0 < part < 1 or self.peek() == "^":
            raise Unreadable("neither a mixed number nor clearly a product")
        return ("number", value[1] + part)

    def raw_subscript(self) -> str:
        if not self.take("{"):
            return self.take() or self.refuse("_")
        tokens = []
        while (token := self.take()) != "}":
            if token is None or token == "{":
                raise Unreadable("a subscript that does not end")
            tokens.append(token[6:-1] if token.startswith("\\text{") else token)
        return "".join(tokens)

    def symbol(self, name: str) -> Tree:
        if self.take("_"):
            subscript = self.raw_subscript()
            name = f"{name}_{subscript}"
        while self.take("'"):
            name += "'"
        if name[0] in "fghFGH" and self.peek() == "(" and len(name.rstrip("'")) == 1:
            self.take()
            return ("symbol", f"{name}{self.group('(')}")
        return ("symbol", name)

    def group(self, opening: str) -> Tree:
        bars, self.bars = self.bars, 0
        if opening == "{":
            tree = self.sum()
            self.need("}")
        elif opening == "\\{" and self.take("\\}"):
            tree = ("symbol", "emptyset")
        else:
            items = self.items()
            closing = self.take(")", "]", "\\}")
            if closing is None or (opening == "\\{") != (closing == "\\}"):
                raise Unreadable(f"{opening!r} is not closed")
            tree = self.close(opening, items, closing)
        self.bars = bars
        return tree

    def close(self, opening: str, items: list[Tree], closing: str) -> Tree:
        if len(items) == 1 and opening != "\\{":
            if (opening, closing) not in (("(", ")"), ("[", "]")):
                raise Unreadable("an interval has two ends")
            tree = items[0]
            if tree[0] == "number" and self.peek() == "_":  # (1011)_2
                self.take()
                return ("based", str(tree[1]), self.raw_subscript())
            return ("group", "(", ")", tree)
        return ("group", opening, closing, *items)

    def command(self, name: str) -> Tree:
        if name in ("frac", "binom"):
            top, bottom = self.argument(), self.argument()
            return ("div", top, bottom) if name == "frac" else ("call", "binom", top, bottom)
        if name == "sqrt":
            index = self.group("[") if self.take("[") else None
            radicand = self.argument()
            return ("call", "root", radicand, index[3]) if index else ("call", "sqrt", radicand)
        if name in ("lfloor", "lceil"):
            tree = self.sum()
            self.need("\\r" + name[1:])
            return ("call", name[1:], tree)
        if name in FUNCTIONS:
            return self.function(name)
        if name in LISTED:
            opening = self.take("(", "\\{") or self.refuse(name)
            items = self.items()
            self.need(")" if opening == "(" else "\\}")
            return ("call", name, *items)
        if name in ("sum", "prod"):
            return self.series(name)
        if name in MARKS or name in ("angle", "triangle") or name.startswith("mathbb{"):
            return ("symbol", name + ("" if name.startswith("mathbb{") else f" {self.argument()}"))
        return self.symbol(name) if name in LETTERS else self.refuse("\\" + name)

    def argument(self) -> Tree:
        return self.group("{") if self.take("{") else self.atom()

    def function(self, name: str) -> Tree:
        base = power = None
        if name == "log" and self.take("_"):
            if re.fullmatch(r"\d\d+", self.peek() or ""):
                raise Unreadable("where does the base end?")
            base = self.argument()
            self.take(" ")
        if self.take("^"):
            power = self.exponent()
        if self.peek() == "(":
            argument = self.atom()
        else:
            sign = self.take("-")
            argument = self.factor()
            while self.starts_factor() and self.peek() != "(" and self.peek()[1:] not in FUNCTIONS:
                argument = ("mul", argument, self.factor())
            if self.peek() == "/" or (self.peek() == "(" and self.starts_factor()):
                raise Unreadable("where does the argument end?")
            argument = ("neg", argument) if sign else argument
        if power == ("neg", ("number", Fraction(1))):
            return ("call", f"arc{name}", argument) if f"arc{name}" in FUNCTIONS else self.refuse(f"{name}^-1")
        tree = ("call", name, argument, *([base] if base else []))
        return ("pow", tree, power) if power else tree

    def series(self, name: str) -> Tree:
        self.need("_")
        self.need("{")
        index = self.take() or self.refuse("_")
        self.need("=")
        first = self.sum()
        self.need("}")
        self.need("^")
        last = self.exponent()
        return ("series", name, self.symbol(index)[1], first, last, self.term())

    def matrix(self, kind: str) -> Tree:
        rows, row = [], [self.sum()]
        while token := self.take("&", "\\\\"):
            if token == "\\\\" and self.peek() == f"\\end{{{kind}}}":
                break
            if token == "\\\\":
                rows.append(("row", *row))
                row = []
            row.append(self.sum())
        self.need(f"\\end{{{kind}}}")
        return ("matrix", kind if kind[0] in "vV" else "matrix", *rows, ("row", *row))
