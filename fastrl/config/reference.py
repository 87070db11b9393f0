"""The reference of all settings as Markdown, from their annotations and docstrings. docs/settings.md holds it."""

import dataclasses
import inspect
import json
from collections.abc import Iterator
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from docstring_parser.attrdoc import AttributeDocstrings

from fastrl.config.annotations import bounds_of, choice_of, rules_of
from fastrl.config.schema import EvalConfig, TrainConfig, WarmupConfig
from fastrl.config.settings import annotations_of, settings_of

HEAD = """# Settings

Made by `fastrl settings`. A setting stands in the TOML file of a command, under its section, and may be overridden on
the command line: `--section.key value`, with - for _ if you like; an entry of a table: `--section.key.entry value`. A
line: default, type, range, meaning.

## `fastrl train`, and `fastrl plan`
"""


def reference() -> str:
    """All settings of `fastrl train`, then what `fastrl warmup` and `fastrl eval` have besides or set otherwise."""
    lines = [HEAD, *_sections("", TrainConfig())]
    for name, config in (("warmup", WarmupConfig()), ("eval", EvalConfig())):
        lines += [f"## `fastrl {name}`", "", *_shared(config), *_sections("", config, set(annotations_of(TrainConfig)))]
    return "\n".join(lines).rstrip() + "\n"


def _shared(config: Any) -> Iterator[str]:
    """What a command takes from the sections above, and which of their defaults are others there."""
    known = {name: value for name, _, value in settings_of(TrainConfig())}
    sections = dict.fromkeys(name.partition(".")[0] for name, _, _ in settings_of(config) if name in known)
    changed = [f"`{n} = {_toml(value)}`" for n, _, value in settings_of(config) if n in known and known[n] != value]
    defaults = f" with the defaults {', '.join(changed)}" if changed else ""
    yield from (f"Of the sections above {', '.join(f'`[{name}]`' for name in sections)}{defaults}; besides:", "")


def _sections(path: str, config: Any, left_out: set[str] = frozenset()) -> Iterator[str]:
    """The settings of a config, then those of the sections in it."""
    annotations, docs = annotations_of(type(config)), AttributeDocstrings().get_attr_docs(type(config))
    sections = [key for key in annotations if dataclasses.is_dataclass(annotations[key])]
    if path:
        yield from (f"### `[{path}]`", "", _prose(inspect.getdoc(type(config))), "")
    settings = [key for key in annotations if key not in sections]
    for key in settings:
        yield from _setting(key, annotations[key], getattr(config, key), docs[key][0] if key in docs else "")
    yield from ([""] if settings else [])
    for key in (key for key in sections if key not in left_out):
        yield from _sections(f"{path}.{key}".lstrip("."), getattr(config, key))


def _setting(key: str, annotation: Any, default: Any, doc: str) -> Iterator[str]:
    choice = choice_of(annotation)
    kind = ", ".join([_type(annotation), *(f"{words} {bound}" for words, _, bound in bounds_of(annotation))])
    yield f"- `{key} = {_toml(default)}` ({kind}): {_prose(choice.meaning if choice else doc)}"
    for name, line in (choice.choices() if choice else {}).items():
        yield f"    - `{name}`: {_prose(line)}"


def _type(annotation: Any) -> str:
    """`int`, `"a" or "b"`, `list of text`."""
    if get_origin(annotation) is Literal:
        return " or ".join(f"`{_toml(choice)}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        return " or ".join(map(_type, get_args(annotation)))
    if get_origin(annotation) is tuple:
        return f"list of {_type(get_args(annotation)[0])}"
    if get_origin(annotation) is dict:
        return f"table of {_type(get_args(annotation)[1])}"
    if rules_of(annotation):
        return _type(annotation.__origin__)
    return {str: "text", bool: "true or false", int: "whole number", float: "number"}[annotation]


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _prose(text: str) -> str:
    """One line; < begins no HTML."""
    return " ".join(text.split()).replace("<", "\\<")
