"""Completions that an evaluation kept, a page of them at a time and none longer than can be shown."""

from collections.abc import Sequence

from fastrl.evaluation.kept import prompt_text
from fastrl.watch.rollout_view import NUM_PROMPT_CHARS

ROWS_A_PAGE, NUM_CHARS = 50, 20_000
WHICH = {"": None, "correct": True, "wrong": False}
PLAIN = ("problem_id", "sample", "reward", "is_correct", "reason", "answer", "num_tokens", "finish_reason")


def completions_page(rows: Sequence[dict], offset: int, text: str, which: str) -> dict:
    """`total` of those with `text` in problem, prompt or completion, and `rows` from `offset` on, cut to NUM_CHARS.

    which: correct, wrong, or empty for both. ValueError for another.
    """
    if which not in WHICH:
        raise ValueError(f"which = {which[:40]!r}; known: correct, wrong, or nothing for both")
    found = [
        row
        for row in rows
        if WHICH[which] in (None, row.get("is_correct")) and (not text or text.lower() in _searched(row))
    ]
    return {"total": len(found), "rows": [answer(row) for row in found[offset : offset + ROWS_A_PAGE]]}


def answer(row: dict) -> dict:
    """One completion for the page; `characters` is its whole length."""
    completion = row.get("completion") or ""
    cut = {"completion": completion[:NUM_CHARS], "characters": len(completion)}
    return {n: row.get(n) for n in PLAIN} | cut | {"prompt": prompt_text(row.get("prompt"))[:NUM_PROMPT_CHARS]}


def _searched(row: dict) -> str:
    return f"{row.get('problem_id')}\n{prompt_text(row.get('prompt'))}\n{row.get('completion')}".lower()
