"""What only shows after minutes: an idle pipeline stays, and a busy one neither grows nor leaks."""

import random
import threading
import time
from pathlib import Path

import psutil
import pytest

from qubic_lab.errors import DeadlineError, RequestCancelled
from qubic_lab.pipeline import Pipeline

pytestmark = [pytest.mark.dist, pytest.mark.slow, pytest.mark.timeout(1200)]

MINUTES = 10.0
MOST_GROWTH = 1.05


def test_a_pipeline_that_was_idle_answers_at_once(tiny: Path) -> None:
    with Pipeline.launch(model=str(tiny), ranks=2, threads=1) as lab:
        expected = lab.generate("hi", max_new_tokens=8, ignore_eos=True)
        cpu_before = sum(sum(psutil.Process(rank.pid).cpu_times()[:2]) for rank in lab.describe())
        time.sleep(60 * MINUTES)
        cpu = sum(sum(psutil.Process(rank.pid).cpu_times()[:2]) for rank in lab.describe()) - cpu_before
        again = lab.generate("hi", max_new_tokens=8, ignore_eos=True)
    assert again.token_ids == expected.token_ids
    assert cpu < 0.02 * 60 * MINUTES, "idle ranks burn the processor"


def client(lab: Pipeline, seed: int, end: float) -> None:
    """Ask until `end`: answers read whole, cancelled in their middle, out of time, and several at once."""
    choice = random.Random(seed)
    while time.monotonic() < end:
        options = {"max_new_tokens": choice.randint(1, 60), "temperature": choice.random(), "ignore_eos": True}
        stream = lab.stream("x" * choice.randint(1, 300), **options, deadline_s=choice.choice((0.0, 0.2, 5.0)))
        stop_after = choice.choice((3, 1000))
        try:
            for number, _ in enumerate(stream):
                if number == stop_after:
                    stream.cancel()
            if choice.random() < 0.2:
                lab.samples("two", 2, **options)
        except (DeadlineError, RequestCancelled):
            continue


def held(processes: list[psutil.Process]) -> tuple[int, int]:
    """Resident bytes and open files of all processes together."""
    return sum(p.memory_info().rss for p in processes), sum(p.num_fds() for p in processes)


def test_a_busy_pipeline_neither_grows_nor_leaks(tiny: Path) -> None:
    with Pipeline.launch(model=str(tiny), ranks=2, threads=1, slots=4) as lab:
        ranks = [psutil.Process(rank.pid) for rank in lab.describe()]
        seen = []
        for part in range(10):  # the first part warms up
            end = time.monotonic() + 6 * MINUTES
            clients = [threading.Thread(target=client, args=(lab, 100 * part + n, end)) for n in range(8)]
            for thread in clients:
                thread.start()
            for thread in clients:
                thread.join()
            seen.append(held(ranks))
        stats = lab.stats()
    assert stats.requests == 0
    assert stats.finished > 100
    assert seen[-1][0] < MOST_GROWTH * seen[1][0], f"memory grew: {seen}"
    assert seen[-1][1] <= seen[1][1] + 8, f"open files grew: {seen}"
