"""Coordinators that are lost: who is asked next, with which key, and where a stream goes on."""

from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import pytest

from qubic_lab.wire import failover
from qubic_lab.wire.failover import HANG_UP, KEY, LAST_EVENT, CoordinatorTransport, is_question

URLS = ("http://one:1", "http://two:2")
ASK = "/api/ai/query"
CHAT = "/v1/chat/completions"
STREAM = {"Content-Type": "text/event-stream; charset=utf-8"}


class Broken(httpx2.SyncByteStream):
    """Some pieces, after which the connection breaks, if it `breaks`."""

    def __init__(self, *pieces: bytes, breaks: bool = True) -> None:
        self.pieces, self.breaks = pieces, breaks

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.breaks:
            raise httpx2.RemoteProtocolError("incomplete chunked read")


class Scripted(httpx2.BaseTransport):
    """Answers one request after the other as it is told; `asked` are host, key, Last-Event-ID and hang-up of each."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        assert request.headers["Host"] == request.url.netloc.decode()
        names = (KEY, LAST_EVENT, HANG_UP)
        self.asked.append((request.url.host, *(request.headers.get(name, "") for name in names)))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, which take no time."""
    pauses: list[float] = []
    monkeypatch.setattr(failover.time, "sleep", pauses.append)
    return pauses


def client(*answers: httpx2.Response | Exception, patient: bool = False) -> tuple[Scripted, httpx2.Client]:
    inner = Scripted(*answers)
    transport = CoordinatorTransport(URLS, inner, patient=patient)
    return inner, httpx2.Client(base_url=URLS[0], transport=transport)


def ok(text: str = "") -> httpx2.Response:
    return httpx2.Response(200, text=text)


REFUSED, RESET = httpx2.ConnectError("refused"), httpx2.ReadError("reset")


def test_the_next_one_is_asked_with_the_same_key_when_one_is_lost(slept: list[float]) -> None:
    inner, http = client(RESET, REFUSED, ok("answer"), ok())
    assert http.post(ASK, json={"prompt": "?"}).text == "answer"
    hosts, keys, _, hang_ups = zip(*inner.asked, strict=True)
    assert hosts == ("one", "one", "two")
    assert len(set(keys)) == 1 and keys[0] and set(hang_ups) == {"cancel"}
    assert slept == [failover.PAUSES_S[0]]
    http.post(ASK, json={"prompt": "?"})
    assert inner.asked[-1][0] == "two", "the one that answered last comes first"
    assert inner.asked[-1][1] != keys[0], "each question has a key of its own"


def test_the_callers_key_is_kept_and_its_work_goes_on() -> None:
    inner, http = client(ok())
    http.post(ASK, json={"prompt": "?"}, headers={KEY: "mine"})
    assert inner.asked == [("one", "mine", "", "")]


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        (ASK, {"prompt": "?", "mode": "single"}, True),
        (ASK, {"prompt": "?", "mode": "consensus"}, False),
        (CHAT, {"model": "smollm2", "messages": []}, True),
        (CHAT, {"model": "consensus/3", "messages": []}, False),
        ("/api/ai/consensus_query", {"prompt": "?"}, False),
        ("/api/cluster/nodes/a/drain", {}, False),
    ],
)
def test_what_asks_a_model_gets_a_key_and_a_vote_does_not(path: str, body: dict[str, Any], expected: bool) -> None:
    assert is_question(httpx2.Request("POST", f"{URLS[0]}{path}", json=body)) is expected


def test_three_repetitions_are_the_most_and_nothing_is_asked_twice_without_a_key(slept: list[float]) -> None:
    inner, http = client(*[RESET] * 9)
    with pytest.raises(httpx2.ReadError):
        http.post(ASK, json={"prompt": "?"})
    assert len(inner.asked) == 4 and slept == [*failover.PAUSES_S]
    with pytest.raises(httpx2.ReadError):
        http.post("/api/ai/consensus_query", json={"prompt": "?"})
    assert len(inner.asked) == 5


def test_a_cluster_that_does_not_run_is_told_at_once(slept: list[float]) -> None:
    inner, http = client(*[REFUSED] * 2)
    with pytest.raises(httpx2.ConnectError):
        http.post(ASK, json={"prompt": "?"})
    assert [host for host, *_ in inner.asked] == ["one", "two"] and not slept


def test_a_patient_client_waits_for_a_coordinator_and_for_room(slept: list[float]) -> None:
    full = httpx2.Response(503, headers={"Retry-After": "5"})
    _, http = client(REFUSED, REFUSED, full, ok("answer"), patient=True)
    assert http.post(ASK, json={"prompt": "?"}).text == "answer"
    assert slept == [0.3, 5.0]
    assert client(full)[1].post(ASK, json={"prompt": "?"}).status_code == 503


def events(*names: str) -> list[bytes]:
    return [f"data: {name}\n\n".encode() for name in names]


@pytest.mark.parametrize(
    ("path", "again", "last"),
    [(ASK, ("c", "d"), "2"), (CHAT, ("a", "b", "c", "d"), "")],
    ids=["by number", "from the beginning"],
)
def test_a_broken_stream_goes_on_after_its_last_whole_event(path: str, again: Sequence[str], last: str) -> None:
    first, second = events("a", "b")
    broken = httpx2.Response(200, headers=STREAM, stream=Broken(first, second[:5], second[5:], b"data: c"))
    inner, http = client(broken, httpx2.Response(200, headers=STREAM, stream=Broken(*events(*again), breaks=False)))
    with http.stream("POST", path, json={"prompt": "?", "stream": True}) as response:
        assert [line for line in response.iter_lines() if line] == ["data: a", "data: b", "data: c", "data: d"]
    assert [asked[2] for asked in inner.asked] == ["", last]
    assert inner.asked[0][1] == inner.asked[1][1]


@pytest.mark.parametrize("body", [{"n": 2}, {"prompt": ["a", "b"]}])
def test_a_stream_of_several_answers_has_no_order_to_go_on_in(body: dict[str, Any]) -> None:
    inner, http = client(httpx2.Response(200, headers=STREAM, stream=Broken(*events("a"))))
    with http.stream("POST", CHAT, json=body) as response, pytest.raises(httpx2.RemoteProtocolError):
        response.read()
    assert len(inner.asked) == 1


def test_a_body_that_breaks_off_is_asked_for_again() -> None:
    inner, http = client(httpx2.Response(200, stream=Broken(b"{")), ok("{}"))
    assert http.post(ASK, json={"prompt": "?"}).json() == {}
    assert len(inner.asked) == 2
