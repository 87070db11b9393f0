"""What learning sees of a problem, and a problem that says more."""

import re
from dataclasses import replace
from typing import Protocol

NAME = re.compile(r"\{(\w+)\}")


class Problem(Protocol):
    """The prompt before its template, and the fields of its row."""

    id: str
    prompt: str | list[dict[str, str]]
    row: dict


def hinted(problem: Problem, hint: str) -> Problem:
    """The problem with the hint behind its text, or behind that of its last message."""
    if isinstance(problem.prompt, str):
        return replace(problem, prompt=problem.prompt + hint)
    *before, last = problem.prompt
    return replace(problem, prompt=[*before, last | {"content": last["content"] + hint}])


def filled(template: str, **texts: str) -> str:
    """The template with each {name} replaced by its text. Braces of other names stay, and those within a text."""
    return NAME.sub(lambda match: texts.get(match[1], match[0]), template)


def require_places(template: str, setting: str, *names: str) -> None:
    """ValueError for a template that lacks one of these names."""
    for name in names:
        if f"{{{name}}}" not in template:
            raise ValueError(f"{setting} = {template!r} must hold {{{name}}}")


def solution_text(completion: str) -> str:
    """What a completion hands in: from its last </think> on."""
    return completion.rpartition("</think>")[2].strip()
