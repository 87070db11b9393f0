"""Ranges: the annotation of a setting says which values it may have, in the words of `annotated_types`."""

import dataclasses
import difflib
import inspect
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import Doc

from fastrl.config.settings import settings_of

Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Seed = Annotated[int, "any whole number"]
Threshold = Annotated[float, "any number"]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
BelowOne = Annotated[float, Ge(0), Lt(1)]
TopP = Annotated[float, Gt(0), Le(1)]

BOUNDS: dict[type, tuple[str, Callable[[float, float], bool]]] = {
    Ge: ("at least", operator.ge),
    Gt: ("above", operator.gt),
    Le: ("at most", operator.le),
    Lt: ("below", operator.lt),
}


class OneOf(Doc):
    """Annotation of a setting that names an entry of a registry, or several. The command line shows it as help."""

    def __init__(self, registry: Mapping[str, Any], meaning: str):
        self.registry, self.meaning = registry, meaning
        choices = (f"{name}: {line}" if line else name for name, line in self.choices().items())
        super().__init__(f"{meaning} {' '.join(choices)}")

    def choices(self) -> dict[str, str]:
        """Name → first line of the docstring of what it names."""
        return {name: (inspect.getdoc(entry) or "").partition("\n")[0] for name, entry in self.registry.items()}

    def check(self, name: str, value: Any) -> None:
        """ValueError for an entry that there is not, with the nearest one that there is."""
        for one in value if isinstance(value, list | tuple) else [value]:
            if one not in self.registry:
                raise ValueError(f"{name} = {one!r} is unknown{nearest(one, self.registry)}")


def nearest(name: object, known: Iterable[str]) -> str:
    """`, did you mean 'x'?` for the known name closest to `name`, else the list of known names."""
    known = list(known)
    match = difflib.get_close_matches(str(name), known, n=1)
    return f", did you mean '{match[0]}'?" if match else f"; known: {', '.join(known)}"


def rules_of(annotation: Any) -> tuple[Any, ...]:
    """What stands beside the type of an annotation."""
    return getattr(annotation, "__metadata__", ())


def is_number_type(annotation: Any) -> bool:
    """int or float, with or without a range."""
    return getattr(annotation, "__origin__", annotation) in (int, float)


def bounds_of(annotation: Any) -> Iterator[tuple[str, Callable[[float, float], bool], float]]:
    """("at least", operator.ge, 0) and the like."""
    for rule in rules_of(annotation):
        if type(rule) in BOUNDS:
            yield *BOUNDS[type(rule)], *dataclasses.astuple(rule)


def choice_of(annotation: Any) -> OneOf | None:
    """The registry that a setting names an entry of, if it does."""
    return next((rule for rule in rules_of(annotation) if isinstance(rule, OneOf)), None)


def check_value(name: str, value: Any, annotation: Any) -> None:
    """ValueError for a value that its annotation does not allow, and for a number that is none or not finite."""
    if dataclasses.is_dataclass(annotation):
        raise ValueError(f"'{name}' is a section, got {value!r}")
    if is_number_type(annotation):
        _check_number(name, value)
    is_row = tuple in (get_origin(annotation), get_origin(getattr(annotation, "__origin__", None)))
    if is_row and isinstance(value, str):  # which Python takes for a row of characters
        raise ValueError(f"{name} must be a list of texts, such as [{value!r}], got {value!r}")
    if get_origin(annotation) is dict and isinstance(value, dict):
        for key, entry in value.items():
            check_value(f"{name}.{key}", entry, get_args(annotation)[1])
    for words, holds, bound in bounds_of(annotation):
        if not holds(value, bound):
            raise ValueError(f"{name} must be {words} {bound}, got {value}")
    if choice := choice_of(annotation):
        choice.check(name, value)


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{name} = {value!r}: a number is needed")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")


def check_ranges(config: Any) -> None:
    """ValueError for the first setting of a config that its annotation does not allow."""
    for name, annotation, value in settings_of(config):
        check_value(name, value, annotation)
