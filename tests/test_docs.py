"""The site of docs/ builds, links hold, nothing is asked of another machine, and its commands and numbers are so."""

import ast
import re
from pathlib import Path

import pytest

from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig
from fastrl.config.settings import settings_of

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SETTINGS = {name for config in (TrainConfig(), EvalConfig(), WarmupConfig()) for name, _, _ in settings_of(config)}


def text_of(node: ast.AST) -> str | None:
    """The text of a string expression, with … for values; None for another expression."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left), text_of(node.right)
        return None if left is None and right is None else (left or "…") + (right or "…")
    return None


def texts(node: ast.AST):
    """Every string of a module that is no docstring, each as long as it is written."""
    text = text_of(node)
    if text is not None:
        yield " ".join(text.split())
    for child in ast.iter_child_nodes(node):
        is_part = text is not None and not isinstance(child, ast.FormattedValue)
        is_docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
        if not is_part and not is_docstring:
            yield from texts(child)


def messages() -> set[str]:
    """All strings of the package that have words in them; pages that it writes are none."""
    paths = [*sorted((ROOT / "fastrl").rglob("*.py")), *sorted((ROOT / "kernels").rglob("*.py"))]
    found = {text for path in paths for text in texts(ast.parse(path.read_text()))}
    return {text for text in found if len(re.findall(r"[a-z]{2}", text)) > 3 and not text.startswith("#")}


def names_a_setting(text: str) -> bool:
    """Whether a message names section.key or a --flag, and says something about it."""
    names = re.findall(r"\b[a-z_]+\.[a-z_.-]*[a-z_]", text)
    return " " in text and (any(name in SETTINGS for name in names) or bool(re.search(r"--[a-z]", text)))


def entries() -> list[str]:
    """The messages that docs/troubleshooting.md explains."""
    page = (DOCS / "troubleshooting.md").read_text()
    return [entry.strip("`") for entry in re.findall(r"^### (`.*`)$", page, re.MULTILINE)]


def as_pattern(message: str) -> re.Pattern:
    """Matches the message with any text for its values."""
    return re.compile(".*".join(map(re.escape, message.split("…"))))


def test_every_message_that_names_a_setting_has_an_entry():
    known = entries()
    missing = {m for m in messages() if names_a_setting(m) and not any(as_pattern(m).search(entry) for entry in known)}
    assert not missing, "docs/troubleshooting.md lacks entries:\n" + "\n".join(f"### `{m}`" for m in sorted(missing))


def test_every_entry_has_its_message():
    patterns = [as_pattern(message) for message in messages()]
    stale = [entry for entry in entries() if not any(pattern.fullmatch(entry) for pattern in patterns)]
    assert not stale, "no such message any more:\n" + "\n".join(stale)
    assert len(set(entries())) == len(entries())
