"""Clients that ask a cluster at even intervals, each in a thread of its own, and note when each token came."""

import json
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import Any
from urllib.parse import urlsplit

import httpx2

from qubic_lab.wire.failover import KEY, CoordinatorTransport

GIVE_UP_S = 120.0
"""A client whose coordinator sends nothing for this time gives up."""
PATH = "/api/ai/query"
_SMALL_BUFFER_BYTES = 2_048

Clock = Callable[[], float]


@dataclass(frozen=True)
class Question:
    """A request: when it is due, and the right answer, as token ids and text; None: a dead letter is right."""

    number: int
    due_s: float
    body: dict[str, Any]
    answer: tuple[tuple[int, ...], str] | None

    @property
    def key(self) -> str:
        """Its idempotency key."""
        return f"question {self.number}"


@dataclass
class Answered:
    """What a client saw of a question: times by the run's clock, `ended_s` None if no end came; then `fault` says why.

    `attempts` counts the nodes that worked on it, `repeated` how often it was asked again.
    """

    question: Question
    token_s: list[float] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    ended_s: float | None = None
    task: str = ""
    text: str = ""
    fault: str = ""
    attempts: int = 0
    repeated: int = 0

    @property
    def is_dead_letter(self) -> bool:
        """Whether the end is the news that all attempts were lost."""
        return self.fault.startswith("all ") and "attempts were lost" in self.fault

    @property
    def is_answered(self) -> bool:
        """Whether it came to the end that it was to have, right or wrong."""
        return self.is_dead_letter if self.question.answer is None else self.ended_s is not None

    @property
    def is_right(self) -> bool:
        """Whether the answer is the undisturbed one, each token once and in order."""
        right = self.question.answer
        return self.is_answered and (right is None or (tuple(self.token_ids), self.text) == right)

    def note(self, event: str, data: dict[str, Any], at_s: float) -> None:
        """Add an event of the stream."""
        if event == "token":
            self.token_s.append(at_s)
            self.token_ids.append(data["id"])
        elif event == "end":
            self.ended_s, self.task, self.text, self.attempts = at_s, data["task_id"], data["text"], data["attempts"]
        elif event == "error":
            self.fault = str(data["detail"])


Ask = Callable[[Question], Answered]


def ask_all(questions: Iterable[Question], ask: Ask, clock: Clock) -> tuple[int, "SimpleQueue[Answered]"]:
    """Ask each question when it is due; return how many there are, and where the answers come.

    The threads do not keep this process from ending.
    """
    answers: SimpleQueue[Answered] = SimpleQueue()

    def run(question: Question) -> None:
        time.sleep(max(0.0, question.due_s - clock()))
        answers.put(ask(question))

    threads = [Thread(target=run, args=(each,), daemon=True) for each in questions]
    for thread in threads:
        thread.start()
    return len(threads), answers


def asker(urls: tuple[str, ...], clock: Clock, trusted: ssl.SSLContext | None = None) -> Ask:
    """Return what asks like a user's program: with a client of its own, which repeats at most three times."""

    def ask(question: Question) -> Answered:
        answered = Answered(question)
        transport = CoordinatorTransport(urls, httpx2.HTTPTransport(verify=trusted or False), patient=True)
        with httpx2.Client(base_url=urls[0], transport=transport, timeout=GIVE_UP_S) as client:
            try:
                body = question.body | {"stream": True}
                with client.stream("POST", PATH, json=body, headers={KEY: question.key}) as response:
                    if response.is_error:
                        response.read()
                        answered.fault = f"status {response.status_code}: {response.text[:200]}"
                    for event, data in read_events(response.iter_lines()):
                        answered.note(event, data, clock())
            except httpx2.HTTPError as error:
                answered.fault = f"{type(error).__name__}: {error}"
        answered.repeated = transport.repeated
        return answered

    return ask


def ask_slowly(url: str, question: Question, clock: Clock, hurry: Callable[[], bool]) -> Answered:
    """Ask as a client that takes a byte a second of its answer, until it may `hurry`."""
    answered, place = Answered(question), urlsplit(url)
    body = json.dumps(question.body | {"stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER_BYTES)
        connection.settimeout(GIVE_UP_S)
        connection.connect((place.hostname, place.port))
        connection.sendall(f"{head}{KEY}: {question.key}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        found = b""
        try:
            while piece := connection.recv(2**16 if hurry() else 1):
                found += piece
                if not hurry():
                    time.sleep(1.0)
        except OSError as error:
            answered.fault = f"{type(error).__name__}: {error}"
    lines = b"".join(_chunks(found.partition(b"\r\n\r\n")[2])).decode().split("\n")
    for event, data in read_events(lines):
        answered.note(event, data, clock())
    return answered


def read_events(lines: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the names and the data of server-sent events."""
    event = ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            event = value
        elif name == "data":
            yield event, json.loads(value)


def _chunks(body: bytes) -> Iterator[bytes]:
    """Yield the chunks of a body whose transfer coding is chunked."""
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
