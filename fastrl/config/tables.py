"""Settings that are tables, entry by entry on the command line: `--task.columns.prompt question`."""

from collections.abc import Sequence
from typing import Any, TypeVar, get_args, get_origin

from fastrl.config.settings import settings_of, with_settings

Config = TypeVar("Config")


def with_table_flags(config: Config, arguments: Sequence[str]) -> tuple[Config, list[str]]:
    """The config with the entries that flags give, added to those it has or in their place; and the other arguments.

    ValueError for a flag without a value, or one that is no number where one is needed.
    """
    tables = {name: (get_args(kind)[1], dict(table)) for name, kind, table in settings_of(config) if _is_table(kind)}
    left, waiting = [], list(arguments)
    while waiting:
        flag, has_value, value = waiting.pop(0).partition("=")
        name = next((name for name in tables if flag.startswith(f"--{name}.")), None)
        if name is None:
            left.append(flag + has_value + value)
            continue
        if not has_value:
            if not waiting:
                raise ValueError(f"{flag} needs a value")
            value = waiting.pop(0)
        kind, table = tables[name]
        table[flag.removeprefix(f"--{name}.")] = _read(flag, value, kind)
    return with_settings(config, {name: table for name, (_, table) in tables.items()}), left


def _is_table(annotation: Any) -> bool:
    return get_origin(annotation) is dict


def _read(flag: str, value: str, kind: type) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{flag} {value}: a number is needed") from None
