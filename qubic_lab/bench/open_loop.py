"""Measures requests that arrive whether or not earlier ones are answered: one process, pipeline, replicas.

A latency counts from the time at which a request was due, so a system that falls behind cannot hide it by asking later
(coordinated omission). Goodput counts the answers within a limit.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

from qubic_lab.bench.concurrency import make_questions
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import ModelResult, Percentiles, Rate, Table, interval_text, settings_of
from qubic_lab.core import Progress, Request, no_progress
from qubic_lab.errors import BusyError, InputError, check_at_least
from qubic_lab.model.config import check_context, load_config
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.pipeline.config import PipelineConfig

ENOUGH = 0.95
"""Share of answers within the limit at which a system keeps up."""


@dataclass(frozen=True)
class Arrivals:
    """When requests are due, in seconds from the start; `per_s` is their rate."""

    name: str
    per_s: float
    due_s: tuple[float, ...]


@dataclass(frozen=True)
class OpenLoad:
    """A system under some arrivals.

    Latencies count from the due times; percentiles are as of `Percentiles`, of answered requests. `late_ms` is how much
    later than due the client sent the request that it sent latest. `goodput_per_s` are the answers within the limit, by
    the time from the first arrival to the last end.
    """

    system: str
    arrivals: str
    per_s: float
    requests: int
    refused: int
    p50_s: float
    p95_s: float
    p95_low_s: float | None
    p95_high_s: float | None
    p99_s: float
    within: Rate
    goodput_per_s: float
    late_ms: float


@dataclass(frozen=True)
class OpenLoopResult(ModelResult):
    """All systems under all arrivals; `keeps_up` has the highest rate of each at which 95 % are within the limit."""

    loads: tuple[OpenLoad, ...]
    keeps_up: dict[str, float | None]
    limit_s: float
    ranks: int
    slots: int
    repeat: int
    answers_unchanged: bool

    def report(self) -> Iterator[Table | str]:
        rows = [
            (
                *(each.system, each.arrivals, f"{each.per_s:.2f}", f"{each.requests}", f"{each.refused}"),
                *(f"{each.p50_s:.2f}", interval_text(each.p95_s, each.p95_low_s, each.p95_high_s, ".2f")),
                *(each.within.text(), f"{each.goodput_per_s:.2f}"),
            )
            for each in self.loads
        ]
        times = ("p50 s", "p95 s (95 % interval)", f"within {self.limit_s:g} s", "goodput/s")
        yield Table(("system", "arrivals", "per s", "requests", "refused", *times), rows)
        for system, rate in self.keeps_up.items():
            kept = "at none of the rates" if rate is None else f"up to {rate:.2f} requests/s"
            yield f"{system}: {ENOUGH:.0%} of answers within {self.limit_s:g} s {kept}"
        yield "no answer changes" if self.answers_unchanged else "ANSWERS CHANGE"


@dataclass(frozen=True)
class _Asked:
    question: int
    latency_s: float
    late_s: float
    tokens: tuple[int, ...] | None  # None: refused


def poisson(per_s: float, count: int, seed: int = 0) -> Arrivals:
    """Return arrivals whose distances are exponential; the first comes at once."""
    draw = random.Random(seed)
    return Arrivals("Poisson", per_s, (0.0, *accumulate(draw.expovariate(per_s) for _ in range(count - 1))))


def recorded(file: Path) -> Arrivals:
    """Read arrivals: a time in seconds a line, in order.

    Raises:
        InputError: the file cannot be read, has fewer than two times, or they are not in order.
    """
    try:
        times = [float(line) for line in file.read_text().split()]
    except (OSError, ValueError) as error:
        raise InputError(f"{file} has no arrivals ({error}): give a file with a time in seconds a line") from None
    if len(times) < 2 or times != sorted(times) or times[-1] <= times[0]:
        raise InputError(f"{file} has {len(times)} times: give at least two, in order")
    due_s = tuple(each - times[0] for each in times)
    return Arrivals(file.stem, (len(times) - 1) / due_s[-1], due_s)


def bench_open_loop(
    config: PipelineConfig,
    rates: Sequence[float],
    files: Sequence[Path] = (),
    limit_s: float = 10.0,
    requests: int = 100,
    repeat: int = 1,
    most_prompt_tokens: int = 64,
    most_new_tokens: int = 16,
    progress: Progress = no_progress,
) -> OpenLoopResult:
    """Let questions arrive at a pipeline, at one process of as many threads, and at a replica for each rank.

    The systems take turns, `repeat` times, with the same arrivals. Questions are those of `bench_concurrency`.

    Raises:
        InputError: a value is out of range, or as for `recorded`; nothing was run.
        ModelError, RankError: as for Pipeline.launch.
    """
    check_at_least("requests", requests, 2)
    check_at_least("repeat", repeat, 1)
    check_at_least("ranks", config.ranks or 1, 2)
    if not all(rate > 0 for rate in (*rates, limit_s)):
        raise InputError("rates and --limit must be above 0")
    bursts = [recorded(file) for file in files]
    watch = NoiseWatch()
    blocks: dict[tuple[str, str, float], list[tuple[list[_Asked], float]]] = {}
    with ExitStack() as stack:
        pipeline = stack.enter_context(Pipeline.launch(config))
        used = pipeline.config
        shape = load_config(text_folder(used.folder))
        check_context(shape, most_prompt_tokens, most_new_tokens)
        most = max([requests, *(len(each.due_s) for each in bursts)])
        questions = make_questions(shape.vocab, most, most_prompt_tokens, most_new_tokens)
        replica = replace(config, ranks=1, strategy=None, threads=used.threads)
        alone = replace(replica, threads=used.threads * used.ranks, slots=used.slots * used.ranks)
        systems = {
            "pipeline": [pipeline],
            "one process": [stack.enter_context(Pipeline.launch(alone))],
            "replicas": [stack.enter_context(Pipeline.launch(replica)) for _ in range(used.ranks)],
        }
        for members in systems.values():  # warm-up
            for member in members:
                list(member.answer_all(questions[:2]))
        for number in range(repeat):
            arrivals = [*(poisson(rate, requests, seed=number) for rate in rates), *bursts]
            for done, each in enumerate(arrivals):
                progress("arrivals", number * len(arrivals) + done, repeat * len(arrivals))
                for system, members in systems.items():
                    block = _ask_when_due(members, each.due_s, questions)
                    blocks.setdefault((system, each.name, each.per_s), []).append(block)
    loads = tuple(_load(*what, found, limit_s) for what, found in blocks.items())
    answers: dict[int, set[tuple[int, ...]]] = {}
    for asked in (each for found in blocks.values() for block, _ in found for each in block if each.tokens is not None):
        answers.setdefault(asked.question, set()).add(asked.tokens or ())
    return OpenLoopResult(
        loads=loads,
        keeps_up={system: kept_up([each for each in loads if each.system == system]) for system in systems},
        limit_s=limit_s,
        repeat=repeat,
        answers_unchanged=all(len(each) == 1 for each in answers.values()),
        noise=watch.noise(),
        **settings_of(used, "ranks", "slots"),
    )


def kept_up(loads: Sequence[OpenLoad]) -> float | None:
    """Return the highest rate up to which, at each rate, enough answers are within the limit; None if there is none."""
    kept = None
    for load in sorted(loads, key=lambda each: each.per_s):
        if load.within.value < ENOUGH:
            break
        kept = load.per_s
    return kept


def _ask_when_due(
    members: Sequence[Pipeline], due_s: Sequence[float], questions: Sequence[Request]
) -> tuple[list[_Asked], float]:
    """Ask each question at its time, at the member with the fewest open ones; return also when the last one ended."""
    open_requests = [0] * len(members)
    lock = threading.Lock()

    def ask(number: int) -> _Asked:
        time.sleep(max(0.0, started_s + due_s[number] - time.perf_counter()))
        late_s = time.perf_counter() - started_s - due_s[number]
        with lock:
            index = open_requests.index(min(open_requests))
            open_requests[index] += 1
        tokens = None
        try:
            tokens = members[index].answer(questions[number]).completion.token_ids
        except BusyError:
            pass
        finally:
            with lock:
                open_requests[index] -= 1
        return _Asked(number, time.perf_counter() - started_s - due_s[number], late_s, tokens)

    with ThreadPoolExecutor(len(due_s)) as pool:  # a thread for each, so that none waits for another
        started_s = time.perf_counter() + 0.1
        asked = list(pool.map(ask, range(len(due_s))))
    return asked, max(due_s[each.question] + each.latency_s for each in asked)


def _load(
    system: str, arrivals: str, per_s: float, blocks: Sequence[tuple[Sequence[_Asked], float]], limit_s: float
) -> OpenLoad:
    asked = [each for block, _ in blocks for each in block]
    latencies_s = [each.latency_s for each in asked if each.tokens is not None]
    if not latencies_s:
        raise InputError(f"all {len(asked)} requests were refused: give lower rates")
    good = sum(each <= limit_s for each in latencies_s)
    times = Percentiles.of(latencies_s)
    return OpenLoad(
        system=system,
        arrivals=arrivals,
        per_s=per_s,
        requests=len(asked),
        refused=len(asked) - len(latencies_s),
        p50_s=times.p50,
        p95_s=times.p95,
        p95_low_s=times.p95_low,
        p95_high_s=times.p95_high,
        p99_s=times.p99,
        within=Rate.of(good, len(asked)),
        goodput_per_s=good / sum(end_s for _, end_s in blocks),
        late_ms=1e3 * max(each.late_s for each in asked),
    )
