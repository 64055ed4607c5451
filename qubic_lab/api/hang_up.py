"""Work for a client ends when the client is gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import Request

from qubic_lab.errors import RequestCancelled

T = TypeVar("T")


async def until_done(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what some work comes to; when the client hangs up, or this is cancelled, the work is cancelled.

    Raises:
        RequestCancelled: the client hung up.
    """
    working = asyncio.ensure_future(work)
    hanging_up = asyncio.ensure_future(hung_up(request))
    try:
        await asyncio.wait({working, hanging_up}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise RequestCancelled("the client hung up")
    finally:
        for each in (working, hanging_up):
            each.cancel()
        await asyncio.gather(working, hanging_up, return_exceptions=True)


async def hung_up(request: Request) -> None:
    """Return when the client is gone; its body has been read, so nothing else comes."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
