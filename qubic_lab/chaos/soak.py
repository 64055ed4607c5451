"""A long mixed load with a fault every few seconds: does memory, or the number of open files or keys, grow?

Clients are those of the cases: they ask with a key and repeat what is lost, so none may see an error or a wrong answer.
Faults take turns: a node is killed, slow or failing, a coordinator is killed, Redis is killed or stopped.
"""

import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from statistics import median

import httpx2
import psutil
import redis

from qubic_lab.bench.arrivals import due_times
from qubic_lab.bench.echo_node import MODEL, echo_text, echo_tokens
from qubic_lab.bench.local_cluster import LocalCluster, local_cluster, temporary_folder
from qubic_lab.bench.noise import NoiseWatch
from qubic_lab.bench.result import MeasuredResult, Table
from qubic_lab.chaos.case import ChaosCase
from qubic_lab.chaos.clients import GIVE_UP_S, Ask, Clock, Question, asker
from qubic_lab.chaos.node_cases import NodeFails, NodeKilled, NodeSlow
from qubic_lab.chaos.service_cases import CoordinatorKilled, RedisKilled, RedisPaused
from qubic_lab.chaos.stage import NODES, Stage, echo_question
from qubic_lab.cluster.redis_server import connect
from qubic_lab.core import Progress, no_progress
from qubic_lab.errors import InputError
from qubic_lab.wire.failover import CoordinatorTransport

FAULTS = (NodeKilled, CoordinatorKilled, NodeSlow, RedisKilled, NodeFails, RedisPaused)
COORDINATORS, CLIENTS, SLOTS = 2, 64, 64
SAMPLE_S = 5.0
EARLY, LATE = (0.2, 0.4), (0.8, 1.0)
"""Parts of the time that are compared: caches fill at first."""
TIMES, MORE_BYTES, MORE_FILES, MORE_KEYS = 1.05, 10 * 2**20, 10, 20
"""What may have grown: by this factor and so much more."""
KEPT_BYTES = 4_096
"""Of Redis for each key that expires: answers are kept for an hour, so they pile up in a shorter run."""
WHOLE, STATUS = "/v1/chat/completions", "/api/cluster/status"


@dataclass(frozen=True)
class Held:
    """What members held at one time: by role the most memory and open files of one of its processes, and Redis's keys.

    `kept` are keys that expire; `lasting` are the others.
    """

    at_s: float
    bytes: Mapping[str, int]
    files: Mapping[str, int]
    lasting: int
    kept: int


@dataclass(frozen=True)
class Growth:
    """Medians early and late in the run, and the most that the late one may be."""

    what: str
    early: float
    late: float
    most: float

    @property
    def is_flat(self) -> bool:
        """Whether it has not grown."""
        return self.late <= self.most


@dataclass(frozen=True)
class SoakResult(MeasuredResult):
    """What a long run showed: requests by kind, faults by name, errors that clients saw, and what grew."""

    minutes: float
    fault_every_s: float
    rate: float
    requests: dict[str, int]
    faults: dict[str, int]
    errors: int
    first_error: str
    repeated: int
    growths: tuple[Growth, ...]
    passed: bool
    measured_utc: str

    def report(self) -> Iterator[Table | str]:
        rows = [
            (each.what, f"{each.early:.1f}", f"{each.late:.1f}", f"{each.most:.1f}", "flat" if each.is_flat else "GREW")
            for each in self.growths
        ]
        yield Table(("held", "early", "late", "at most", "verdict"), rows)
        asked = ", ".join(f"{count:,} {kind}" for kind, count in self.requests.items())
        struck = ", ".join(f"{count} × {name}" for name, count in self.faults.items())
        yield f"asked in {self.minutes:g} minutes: {asked}; faults: {struck or 'none'}"
        yield f"{self.errors} errors that a client saw, {self.repeated} requests repeated by clients"
        if self.first_error:
            yield f"first error: {self.first_error}"
        yield "passed" if self.passed else "NOT passed"


def run_soak(
    minutes: float = 60.0, fault_every_s: float = 20.0, rate: float = 5.0, progress: Progress = no_progress
) -> SoakResult:
    """Ask a cluster of two coordinators and three echo nodes for so long, with a fault at each interval; 0: none.

    Raises:
        InputError: a number is out of range.
        QubicLabError: a process does not start.
    """
    if minutes < 0.5 or fault_every_s < 0:
        raise InputError(f"--minutes is {minutes:g}, --fault-every {fault_every_s:g}: give at least 0.5 and 0")
    seconds, watch = 60.0 * minutes, NoiseWatch()
    due_s = due_times("steady", rate, seconds)
    counts, errors, repeated, held, struck = Counter[str](), list[str](), [0], list[Held](), Counter[str]()
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        cluster = stack.enter_context(local_cluster(COORDINATORS, folder=folder))
        started = [time.monotonic()]

        def clock() -> float:
            return time.monotonic() - started[0]

        stage = Stage(cluster, stack, folder, clock, SLOTS)
        stage.start_echo(*NODES)
        started[0], ending = time.monotonic(), threading.Event()
        sampling = threading.Thread(target=lambda: held.extend(_samples(cluster, clock, ending)), daemon=True)
        sampling.start()
        urls = tuple(cluster.urls.values())
        ask = asker(urls, clock)

        def run(number: int) -> None:
            kind, fault, times = _ask(number, due_s[number], ask, urls)
            counts[kind] += 1
            repeated[0] += times
            if fault:
                errors.append(f"request {number} ({kind}) after {clock():.0f} s: {fault}")

        def ask_on() -> None:
            with ThreadPoolExecutor(CLIENTS) as pool:
                for number, at_s in enumerate(due_s):
                    time.sleep(max(0.0, at_s - clock()))
                    pool.submit(run, number)
                    progress("asks", int(clock()), int(seconds))

        asking = threading.Thread(target=ask_on, daemon=True)
        asking.start()
        _strike_on(stage, fault_every_s, seconds, struck)  # here: members end with the thread that has started them
        asking.join()
        ending.set()
        sampling.join()
    growths = growths_of(held, seconds)
    return SoakResult(
        minutes=minutes,
        fault_every_s=fault_every_s,
        rate=rate,
        requests=dict(counts),
        faults=dict(struck),
        errors=len(errors),
        first_error=errors[0] if errors else "",
        repeated=repeated[0],
        growths=growths,
        passed=not errors and all(each.is_flat for each in growths),
        measured_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        noise=watch.noise(),
    )


def growths_of(held: Sequence[Held], seconds: float) -> tuple[Growth, ...]:
    """Compare medians of the early and the late part of a run, in MB, files and keys."""
    early, late = (
        [each for each in held if first * seconds <= each.at_s <= last * seconds] for first, last in (EARLY, LATE)
    )
    if not (early and late):
        return ()
    found = []
    kept = max(0.0, median(each.kept for each in late) - median(each.kept for each in early))
    for role in sorted(set(early[0].bytes) & set(late[0].bytes)):
        before, after = (median(each.bytes.get(role, 0) for each in part) for part in (early, late))
        more = MORE_BYTES + (kept * KEPT_BYTES if role == "redis" else 0.0)
        found.append(Growth(f"{role}, MB", before / 1e6, after / 1e6, (TIMES * before + more) / 1e6))
        before, after = (median(each.files.get(role, 0) for each in part) for part in (early, late))
        found.append(Growth(f"{role}, open files", before, after, TIMES * before + MORE_FILES))
    before, after = (median(each.lasting for each in part) for part in (early, late))
    return (*found, Growth("Redis keys that stay", before, after, TIMES * before + MORE_KEYS))


def _ask(number: int, due_s: float, ask: Ask, urls: tuple[str, ...]) -> tuple[str, str, int]:
    """Send a request of its kind; return the kind, what was wrong, and how often the client repeated it."""
    place = number % 10
    question = echo_question(number, due_s)
    if place < 7:
        answered = ask(question)
        wrong = "" if answered.is_right else answered.fault or f"was answered {answered.text[:80]!r}"
        return "streams", wrong, answered.repeated
    kind, path = ("status", STATUS) if place == 9 else ("whole answers", WHOLE)
    transport = CoordinatorTransport(urls, patient=True)
    with httpx2.Client(base_url=urls[0], transport=transport, timeout=GIVE_UP_S) as client:
        try:
            reply = client.get(path) if place == 9 else client.post(path, json=_whole_body(question))
            expected = "" if place == 9 else json.dumps(_text_of(question))
            is_right = reply.is_success and expected in reply.text
            wrong = "" if is_right else f"status {reply.status_code}: {reply.text[:200]}"
        except httpx2.HTTPError as error:
            wrong = f"{type(error).__name__}: {error}"
    return kind, wrong, transport.repeated


def _whole_body(question: Question) -> dict[str, object]:
    messages = [{"role": "user", "content": question.body["prompt"]}]
    sampling = {"max_tokens": question.body["max_new_tokens"], "seed": question.body["seed"]}
    return {"model": MODEL, "messages": messages, **sampling}


def _text_of(question: Question) -> str:
    return echo_text(echo_tokens(question.body["seed"], question.body["max_new_tokens"]))


def _strike_on(stage: Stage, every_s: float, until_s: float, struck: Counter[str]) -> None:
    """Do a fault at each interval, one after the other; the last one is over before the end."""
    number = 0
    while every_s and stage.clock() + every_s < until_s:
        case: ChaosCase = FAULTS[number % len(FAULTS)]()
        if (at_s := (number + 0.5) * every_s) + case.lasts_s > until_s:
            return
        time.sleep(max(0.0, at_s - stage.clock()))
        case.strike(stage)
        time.sleep(case.lasts_s)
        case.mend(stage)
        struck[case.name] += 1
        number = max(number + 1, int(stage.clock() / every_s))


def _samples(cluster: LocalCluster, clock: Clock, ending: threading.Event) -> Iterator[Held]:
    """Yield what the members hold every few seconds; members that are just killed are left out."""
    roles = dict.fromkeys(NODES, "node") | dict.fromkeys(cluster.urls, "coordinator")
    with connect(cluster.redis.url, answer_s=1.0) as client:
        while not ending.wait(SAMPLE_S):
            held, files = defaultdict[str, int](int), defaultdict[str, int](int)
            pids = [(role, cluster.pid(name)) for name, role in roles.items()]
            for role, pid in [*pids, *([("redis", cluster.redis.pid)] if cluster.redis.pid else [])]:
                with suppress(psutil.Error):
                    process = psutil.Process(pid)
                    held[role] = max(held[role], process.memory_info().rss)
                    files[role] = max(files[role], process.num_fds())
            with suppress(redis.RedisError):
                space = client.info("keyspace").get("db0", {"keys": 0, "expires": 0})
                lasting = space["keys"] - space["expires"]
                yield Held(clock(), dict(held), dict(files), lasting, space["expires"])
