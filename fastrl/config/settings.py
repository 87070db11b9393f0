"""A config as named settings, `section.key` each, whatever the depth of its sections."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

Config = TypeVar("Config")


def annotations_of(cls: type) -> dict[str, Any]:
    """Field → annotation with its ranges, of a dataclass; class variables are no settings."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def settings_of(config: Any, section: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(section.key, annotation, value) of every setting in a config."""
    for key, annotation in annotations_of(type(config)).items():
        value = getattr(config, key)
        if dataclasses.is_dataclass(value):
            yield from settings_of(value, f"{section}{key}.")
        else:
            yield f"{section}{key}", annotation, value


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """The config with other values: section.key → value. ValueError where a section refuses its value."""
    for name, value in settings.items():
        key, _, rest = name.partition(".")
        new = with_settings(getattr(config, key), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{key: new})
    return config
