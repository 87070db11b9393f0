"""Values that may have to be awaited: what a reward returns, if it is an `async def`."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any


def then(value: Any, function: Callable[[Any], Any]) -> Any:
    """function(value), or an awaitable of it where the value is one."""

    async def later() -> Any:
        return function(await value)

    return later() if isawaitable(value) else function(value)


def together(values: Sequence[Any]) -> list[Any] | Awaitable[list[Any]]:
    """The list of values; where some are awaitable, an awaitable of it that waits for all of these at once."""

    async def later() -> list[Any]:
        waiting = [i for i, value in enumerate(values) if isawaitable(value)]
        found = dict(enumerate(values)) | dict(
            zip(waiting, await asyncio.gather(*(values[i] for i in waiting)), strict=True)
        )
        return list(found.values())

    return later() if any(map(isawaitable, values)) else list(values)
