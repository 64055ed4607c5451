"""Open-loop load: requests are due at random times that do not wait for answers, as many independent users send them.

A latency counts from the time at which a request was due, not from when it was sent: a generator or a server that holds
back requests would else hide its own delay ("coordinated omission").
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from qubic_lab.errors import InputError, check_choice

Profile = Literal["steady", "burst", "ramp"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
BURST_EVERY_S, BURST_S, BURST_TIMES = 5.0, 1.0, 3.0
"""In each of these intervals requests come for a while at this multiple of the mean rate, and less often else."""
T = TypeVar("T")


@dataclass(frozen=True)
class Arrival(Generic[T]):
    """A request that was due at `due_s` and sent `late_s` later; its answer came `latency_s` after it was due."""

    due_s: float
    late_s: float
    latency_s: float
    answer: T


def due_times(profile: str, rate: float, seconds: float, seed: int = 0) -> list[float]:
    """Return the times of a Poisson process, in seconds from its begin; equal arguments give equal times.

    `rate` is the mean number a second of steady and burst, and the last one of ramp, which begins at 0.

    Raises:
        InputError: the profile is unknown, or the rate or the time is not above 0.
    """
    check_choice("profile", profile, PROFILES)
    for name, value in (("--rate", rate), ("--seconds", seconds)):
        if not value > 0:
            raise InputError(f"{name} is {value:g}: give a number above 0")
    draw, most = random.Random(seed), rate * (BURST_TIMES if profile == "burst" else 1.0)
    found, at_s = list[float](), draw.expovariate(most)
    while at_s < seconds:
        if draw.random() * most < _rate_at(profile, at_s, rate, seconds):  # thinning: Lewis and Shedler, 1979
            found.append(at_s)
        at_s += draw.expovariate(most)
    return found


def _rate_at(profile: str, at_s: float, rate: float, seconds: float) -> float:
    if profile == "ramp":
        return rate * at_s / seconds
    if profile == "steady":
        return rate
    if at_s % BURST_EVERY_S < BURST_S:
        return rate * BURST_TIMES
    return rate * (BURST_EVERY_S - BURST_TIMES * BURST_S) / (BURST_EVERY_S - BURST_S)


async def send_when_due(
    due_s: Sequence[float], send: Callable[[int], Awaitable[T]], note: Callable[[int], None] = lambda sent: None
) -> list[Arrival[T]]:
    """Send request number 0, 1, … when each is due, whatever the others do; return them in this order.

    `note` is called with the number of requests sent so far.
    """
    began_s = time.perf_counter()

    async def run(number: int) -> Arrival[T]:
        sent_s = time.perf_counter() - began_s
        answer = await send(number)
        return Arrival(due_s[number], sent_s - due_s[number], time.perf_counter() - began_s - due_s[number], answer)

    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, at_s in enumerate(due_s):
            if (left_s := began_s + at_s - time.perf_counter()) > 0:
                await asyncio.sleep(left_s)
            tasks.append(group.create_task(run(number)))
            note(number + 1)
    return [task.result() for task in tasks]
