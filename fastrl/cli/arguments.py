"""Command-line arguments to a command's dataclass, by one rule for all commands.

CONFIG.toml comes first where a command takes one, then `--section.key value`, with - or _. What is true or false:
`--flag`, `--flag true` or `--flag false` (True and False as well), wherever it stands.
"""

import dataclasses
import types
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated, TypeVar, Union, get_args, get_origin

import tyro

from fastrl.cli.first_help import first_help
from fastrl.config.files import beside, load_config
from fastrl.config.old_keys import refuse_old_flags
from fastrl.config.settings import annotations_of
from fastrl.config.tables import with_table_flags

Command = TypeVar("Command")

Flat = tyro.conf.arg(name="")  # --section.key, not --config.section.key
TRUTHS = {"true": "True", "True": "True", "false": "False", "False": "False"}
NO_TRUTHS = {"yes", "no", "on", "off", "0", "1", "y", "n", "t", "f", "TRUE", "FALSE"}


def parse(command: type[Command], arguments: list[str], name: str) -> Command:
    """A command that has no config. SystemExit after --help and for what tyro refuses, ValueError for a bad boolean."""
    return _parsed(command, arguments, f"fastrl {name}")


def parse_with_config(command: type[Command], arguments: list[str], name: str) -> Command:
    """A command with a field `config`: CONFIG.toml, then overrides; without a file the defaults are the base.

    --help is one screen, --help-all what tyro says of every setting. Raises as `parse`, and what `load_config` raises.
    """
    if {"-h", "--help"} & set(arguments):
        print(first_help(name))
        raise SystemExit(0)
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    refuse_old_flags(arguments)
    config_class = command.__dataclass_fields__["config"].default_factory
    has_file = bool(arguments) and not arguments[0].startswith("-")
    if not has_file:
        _refuse_late_config(command, arguments, name)
    base = load_config(config_class, arguments[0]) if has_file else config_class()
    base, flags = with_table_flags(base, arguments[has_file:])
    parsed = _parsed(command, flags, f"fastrl {name} CONFIG.toml", command(config=base))
    return replace(parsed, config=beside(Path(arguments[0]), parsed.config)) if has_file else parsed


def _parsed(command: type[Command], arguments: list[str], prog: str, default: Command | None = None) -> Command:
    given = {} if default is None else {"default": default}
    words = with_truths(arguments, set(booleans_of(command)))
    return tyro.cli(command, args=words, prog=prog, config=(tyro.conf.FlagConversionOff,), **given)


def booleans_of(command: type, path: str = "") -> Iterator[str]:
    """Flags (`--section.key`, with - for _) of the fields that may be true or false."""
    for key, annotation in annotations_of(command).items():
        kind = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
        if dataclasses.is_dataclass(kind):
            yield from booleans_of(kind, path if path == "" and key == "config" else f"{path}{key}.")
        elif kind is bool or (get_origin(kind) in (Union, types.UnionType) and bool in get_args(kind)):
            yield f"--{path}{key}".replace("_", "-")


def with_truths(arguments: Iterable[str], booleans: set[str]) -> list[str]:
    """The arguments with True or False behind each boolean flag. ValueError for another word, and for --no-flag."""
    words: list[str] = []
    pending = [word for argument in arguments for word in _split(argument, booleans)]
    while pending:
        words.append(pending.pop(0))
        flag = words[-1].replace("_", "-")
        if flag.startswith("--no-") and f"--{flag[5:]}" in booleans:
            raise ValueError(f"there is no {words[-1]}: say --{flag[5:]} false")
        if flag not in booleans:
            continue
        value = pending[0] if pending else ""
        if value in NO_TRUTHS:
            raise ValueError(f"{words[-1]} {value}: it takes true or false, or nothing, which is true")
        words.append(TRUTHS[pending.pop(0)] if value in TRUTHS else value if value == "auto" else "True")
        if value == "auto":
            pending.pop(0)
    return words


def _split(argument: str, booleans: set[str]) -> list[str]:
    """`--flag=true` as two words; anything else as it is."""
    flag, equals, value = argument.partition("=")
    return [flag, value] if equals and flag.replace("_", "-") in booleans else [argument]


def _refuse_late_config(command: type, arguments: list[str], name: str) -> None:
    """ValueError for a config that stands behind flags."""
    booleans = set(booleans_of(command))
    for before, word in zip(["", *arguments], arguments, strict=False):
        takes_word = before.startswith("--") and "=" not in before and before not in booleans
        if word.endswith(".toml") and not word.startswith("-") and not takes_word:
            others = " ".join(argument for argument in arguments if argument != word)
            raise ValueError(f"the config comes first: fastrl {name} {word} {others}")
