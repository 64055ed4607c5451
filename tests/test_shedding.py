"""New work is refused while the event loop is behind, not after a burst, and at once when it was behind lately."""

import asyncio
from typing import Any

from starlette.responses import PlainTextResponse

from qubic_lab.api.shedding import BEHIND_S, BURST_S, REMEMBERED_S, WORK, Backlog, SheddingMiddleware


def test_a_burst_is_taken_and_a_lasting_backlog_is_not() -> None:
    backlog = Backlog()
    backlog.note(10 * BEHIND_S, now_s=100.0)
    assert not backlog.refuses(100.0) and not backlog.refuses(100.0 + BURST_S / 2)
    assert backlog.refuses(100.0 + BURST_S)
    backlog.note(BEHIND_S / 2, now_s=101.0)
    assert not backlog.refuses(101.0)


def test_after_a_refusal_the_next_backlog_is_no_burst_for_a_while() -> None:
    backlog = Backlog()
    backlog.note(2 * BEHIND_S, now_s=100.0)
    assert backlog.refuses(100.0 + BURST_S)
    for at_s, refused in ((105.0, True), (105.0 + REMEMBERED_S, False)):
        backlog.note(BEHIND_S / 2, at_s - 0.1)
        backlog.note(2 * BEHIND_S, at_s)
        assert backlog.refuses(at_s) is refused


def test_only_a_loop_that_is_behind_now_refuses_and_never_what_tells_of_health() -> None:
    now_s = [0.0]
    turn_s = [0.0]

    def clock() -> float:
        now_s[0] += turn_s[0] / 2
        return now_s[0]

    async def statuses(path: str, *turns_s: float) -> list[int]:
        found: list[int] = []

        async def send(message: Any) -> None:
            found.extend([message["status"]] if message["type"] == "http.response.start" else [])

        app = SheddingMiddleware(PlainTextResponse("done"), clock)
        for turn_s[0] in turns_s:
            now_s[0] += BURST_S
            await app({"type": "http", "path": path, "method": "GET", "headers": []}, None, send)  # type: ignore[arg-type]
        return found

    slow = 4 * BEHIND_S
    assert asyncio.run(statuses(f"{WORK[0]}query", slow, slow, 0.0, slow, 0.0)) == [200, 503, 200, 503, 200]
    assert asyncio.run(statuses("/health", slow, slow, slow)) == [200, 200, 200]
