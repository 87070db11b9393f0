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
    """The list of values; where some are awaitable, an awaitable of it that waits for all of these at once.

    What one of them raises is raised, and the others are cancelled.
    """

    async def later() -> list[Any]:
        waiting = {i: asyncio.ensure_future(value) for i, value in enumerate(values) if isawaitable(value)}
        try:
            await asyncio.gather(*waiting.values())
        finally:
            for task in waiting.values():
                task.cancel()  # of those that still run when one has raised
        return [waiting[i].result() if i in waiting else value for i, value in enumerate(values)]

    return later() if any(map(isawaitable, values)) else list(values)
