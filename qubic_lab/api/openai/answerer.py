"""Who answers what comes over the OpenAI routes: a pipeline, a cluster, or whatever else has this form."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from qubic_lab.core import MAX_SEED, Completion, Request, StreamedToken

AT_ONCE = 16
"""Answers of one HTTP request that are worked on together; a long list of prompts leaves room for other clients."""
MOST_UNREAD = 256
"""Pieces of several answers that wait for a slow reader, before their answers wait as well."""

Piece: TypeAlias = tuple[int, StreamedToken | Completion]
"""Of which sample this is, and its next token, or its end, which has all of it."""


@dataclass(frozen=True)
class ModelCard:
    """A model that can be asked: its name, the hash of its files, and since when it can be asked (Unix time in s)."""

    name: str
    hash: str = ""
    since_s: int = 0


@dataclass(frozen=True)
class ClientInfo:
    """Who asks: the name of the client's token, empty without tokens.

    What was asked before with the same `key` gets the same answer, if the `body` that came with it has the same digest.
    `hang_up` is "cancel" if the work also ends with the connection when there is a key.
    `timeout_s` is how long it waits for a whole answer, if it says so.
    `traced_s` is when the request came, by `time.perf_counter`, if the client wants to know where its time went.
    """

    name: str = ""
    key: str = ""
    body: str = ""
    traced_s: float | None = None
    hang_up: str | None = None
    timeout_s: float | None = None

    def part(self, number: int) -> "ClientInfo":
        """Return it for one of several parts of a request."""
        return replace(self, key=f"{self.key}:{number}") if self.key else self


class Answerer(Protocol):
    """Answers requests. Closing an answer's generator ends the work on it."""

    async def models(self) -> list[ModelCard]:
        """Return the models that can be asked now, first the one that `default` means.

        Raises:
            BusyError: there is none now; says why.
        """

    def answer(
        self, request: Request, samples: int, *, client: ClientInfo, model: str = "", whole: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Yield the tokens and the end of each sample; sample i has the seed of the request + i.

        Args:
            request: what is asked.
            samples: number of answers.
            client: who asks.
            model: the name of one of `models`; empty: the first one.
            whole: only the ends are wanted, which is less work.

        Raises:
            QubicLabError: what the pipeline's service raises; a BusyError if there is no room.
        """


def with_seed(request: Request, sample: int) -> Request:
    """Return the request of one of several samples."""
    seed = (request.sampling.seed + sample) % (MAX_SEED + 1)
    return replace(request, sampling=replace(request.sampling, seed=seed)) if sample else request


async def together(works: Sequence[AsyncGenerator[Piece, None]]) -> AsyncGenerator[tuple[int, Piece], None]:
    """Yield the pieces of several works as they come, each with the number of its work; at most AT_ONCE run.

    The first error of one ends all; so does closing this.
    """
    if len(works) == 1:
        async with aclosing(works[0]) as pieces:
            async for piece in pieces:
                yield 0, piece
        return
    ready: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue(MOST_UNREAD)
    room = asyncio.Semaphore(AT_ONCE)

    async def read(number: int, work: AsyncGenerator[Piece, None]) -> None:
        try:
            async with room, aclosing(work):
                async for piece in work:
                    await ready.put((number, piece))
        except Exception as error:
            await ready.put(error)
        else:
            await ready.put(None)

    reading = [asyncio.ensure_future(read(number, work)) for number, work in enumerate(works)]
    try:
        unfinished = len(works)
        while unfinished:
            found = await ready.get()
            if isinstance(found, Exception):
                raise found
            if found is None:
                unfinished -= 1
            else:
                yield found
    finally:
        for each in reading:
            each.cancel()
        await asyncio.gather(*reading, return_exceptions=True)
