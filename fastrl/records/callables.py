"""The content of a Python object that judges: its source, and that of what it uses, as texts that a digest is made of.

An object that an interpreter can import is known by its file (`fingerprints`). One of `__main__`, a notebook's cell or
another function is known by its own source and, one after the other, by what it closes over and the globals that it
names: functions and classes by their source, data as JSON. What has no source (typed at a prompt) is known by its byte
code. Not seen: what is only reached through an attribute, a module that lies elsewhere, or a file that is read.
"""

import functools
import inspect
import json
import re
from collections.abc import Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def module_of(given: Any) -> str:
    """The module by which a worker imports an object; empty where it cannot."""
    if not isinstance(given, type | FunctionType) or "<" in given.__qualname__ or given.__module__ == "__main__":
        return ""
    return given.__module__


def content(given: Any, seen: set[int] | None = None) -> Iterator[str]:
    """Texts that change when the object, or what it uses, changes."""
    seen = set() if seen is None else seen
    if isinstance(given, FunctionType | type):
        if id(given) in seen:
            return
        seen.add(id(given))
    if isinstance(given, ModuleType):
        yield given.__name__
    elif isinstance(given, functools.partial):
        for part in (given.func, given.args, given.keywords):
            yield from content(part, seen)
    elif isinstance(given, MethodType):
        yield from content(given.__func__, seen)
        yield from content(given.__self__, seen)
    elif isinstance(given, FunctionType):
        yield _source(given) or _byte_code(given.__code__)
        used = {name: given.__globals__.get(name) for name in sorted(_names(given.__code__))}
        cells = [cell.cell_contents for cell in given.__closure__ or ()]
        for part in (given.__defaults__, given.__kwdefaults__, *cells, *used.values()):
            yield from content(part, seen)
    elif isinstance(given, type):
        yield _source(given) or given.__qualname__
        for part in vars(given).values() if given.__module__ == "__main__" else ():
            yield from content(part, seen) if isinstance(part, FunctionType) else ()
    else:
        yield _data(given)
        if type(given).__module__ == "__main__":
            yield from content(type(given), seen)


def _data(value: Any) -> str:
    if isinstance(value, str | int | float | bool | list | tuple | dict | set | frozenset | type(None)):
        try:
            return ADDRESS.sub("", json.dumps(value, sort_keys=True, default=_plain))
        except (TypeError, ValueError):  # keys that are no text, a list that holds itself
            return _plain(value)
    held = getattr(value, "__dict__", {})
    return f"{type(value).__qualname__} {_data(held)}" if held else _plain(value)


def _plain(value: Any) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, set | frozenset) else ADDRESS.sub("", repr(value))


def _source(given: FunctionType | type) -> str:
    try:
        return inspect.getsource(given)
    except (OSError, TypeError):
        return ""


def _byte_code(code: CodeType) -> str:
    inner = [_byte_code(one) if isinstance(one, CodeType) else repr(one) for one in code.co_consts]
    return json.dumps([code.co_code.hex(), code.co_names, inner])


def _names(code: CodeType) -> set[str]:
    """Globals that it may name, functions inside of it included."""
    return set(code.co_names).union(*(_names(one) for one in code.co_consts if isinstance(one, CodeType)))
