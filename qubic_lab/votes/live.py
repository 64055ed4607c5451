"""A vote while it is held, as events that any number of clients can follow."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

LiveEvent = tuple[str, int, dict[str, Any]]
"""Name (count, round or end), number from 1 on, and data."""


class LiveVote:
    """The events of a vote so far: `count` after each answer, `round` after each round, then `end`."""

    def __init__(self, id: str, question: str) -> None:
        self.id, self.question = id, question
        self._events: list[LiveEvent] = []
        self._news = asyncio.Event()

    def note(self, name: str, data: dict[str, Any]) -> None:
        """Add an event and wake up the followers."""
        self._events.append((name, len(self._events) + 1, data))
        self._news.set()
        self._news = asyncio.Event()

    async def follow(self) -> AsyncGenerator[LiveEvent, None]:
        """Yield all events from the first one on, as they come, until the vote has ended."""
        seen = 0
        while True:
            news = self._news
            for event in self._events[seen:]:
                seen += 1
                yield event
                if event[0] == "end":
                    return
            if seen == len(self._events):
                await news.wait()
