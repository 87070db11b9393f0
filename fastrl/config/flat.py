"""A saved config as it stands in its file, whatever the version that wrote it, and how two of them differ."""

import math
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path


def flat_config(path: Path) -> dict[str, object]:
    """section.key → value in JSON's types. ValueError for a broken file."""
    try:
        return dict(_flat(tomllib.loads(path.read_text(encoding="utf-8-sig"))))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _flat(section: dict, name: str = "") -> Iterator[tuple[str, object]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{name}{key}.")
        else:
            yield f"{name}{key}", _plain(value)


def _plain(value: object) -> object:
    """What JSON can say as it is, the rest as text."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    is_said = isinstance(value, (str, bool, int)) or (isinstance(value, float) and math.isfinite(value))
    return value if is_said else str(value)


def differing(configs: Mapping[str, dict[str, object]]) -> dict[str, list[object]]:
    """Setting → its value in each config, of settings that are not the same in all; None where it is unknown."""
    names = dict.fromkeys(name for config in configs.values() for name in config)
    rows = {name: [config.get(name) for config in configs.values()] for name in names}
    return {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
