"""Requests to several coordinators: when one is lost the next is asked, and a broken stream goes on where it stopped.

The transport is one of httpx2, so it serves our own client, and others such as that of the `openai` package. A question
gets an Idempotency-Key, by which every coordinator knows that it is the same one.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx2

KEY, HANG_UP, LAST_EVENT = "Idempotency-Key", "X-Qubic-Hang-Up", "Last-Event-ID"
PAUSES_S = (0.3, 3.0, 10.0)
"""Before each repetition of a request that was sent and got no whole answer."""
LONGEST_PAUSE_S = 30.0
"""Also where a coordinator asks for a longer one."""
_NUMBERED = "/api/ai/"
_ASKING = (f"{_NUMBERED}query", f"{_NUMBERED}single_query", "/v1/chat/completions", "/v1/completions", "/v1/responses")
_NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout)
_NO_ROOM = (httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE)


class CoordinatorTransport(httpx2.BaseTransport):
    """Sends requests to the first of some coordinators that can be reached, and repeats a lost one at most three times.

    What asks a model gets a key if it has none, with the wish that the work ends when the client hangs up. A request
    with a key is repeated when its connection breaks; so is what only reads. A `patient` one also repeats what could
    not be sent, or for which there was no room, after the pause that the answer names.

    Attributes:
        repeated: requests that were sent again so far.
    """

    def __init__(
        self, urls: Sequence[str], inner: httpx2.BaseTransport | None = None, *, patient: bool = False
    ) -> None:
        self.repeated = 0
        self._places = [httpx2.URL(url) for url in urls]
        self._inner = inner or httpx2.HTTPTransport()
        self._patient = patient
        self._latest = 0

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response of the first coordinator that gives one; the error of the last one if none does."""
        request.read()
        if is_question(request) and KEY not in request.headers:
            request.headers.update({KEY: uuid.uuid4().hex, HANG_UP: "cancel"})
        pauses = list(PAUSES_S)
        response = self._send(request, pauses)
        if not _is_continuable(request, response):
            return response

        def again(passed: int, error: httpx2.TransportError) -> httpx2.Response:
            if passed and request.url.path.startswith(_NUMBERED):
                before = int(request.headers.get(LAST_EVENT, "0"))
                request.headers[LAST_EVENT] = str(before + passed)
            self._pause(pauses, error)
            return self._send(request, pauses, sent=True)

        stream = _ContinuedStream(response, again, numbered=request.url.path.startswith(_NUMBERED))
        return httpx2.Response(
            response.status_code, headers=response.headers, stream=stream, extensions=response.extensions
        )

    def close(self) -> None:
        """Close all connections."""
        self._inner.close()

    def _send(self, request: httpx2.Request, pauses: list[float], sent: bool = False) -> httpx2.Response:
        """Send a request until a coordinator answers; with the `pauses` that are left; `sent`: it was sent before."""
        while True:
            least_s = 0.0
            try:
                response = self._send_once(request)
                if not (self._patient and pauses and KEY in request.headers and response.status_code in _NO_ROOM):
                    return response
                response.close()
                least_s = _seconds(response.headers.get("Retry-After", ""))
                self._pause(pauses, least_s=least_s)
            except _NOT_SENT as error:
                if not (sent or self._patient):
                    raise
                self._pause(pauses, error)
            except httpx2.TransportError as error:
                if not _may_repeat(request, error):
                    raise
                sent = True
                self._pause(pauses, error)

    def _send_once(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the coordinators in turn, beginning with the latest one, until one can be reached."""
        for turn in range(len(self._places)):
            place = (self._latest + turn) % len(self._places)
            try:
                response = self._inner.handle_request(_at(request, self._places[place]))
            except _NOT_SENT:
                if turn + 1 == len(self._places):
                    raise
                continue
            self._latest = place
            if KEY in request.headers and not _is_stream(response):
                response.read()  # so that a connection that breaks within the answer is noticed here
            return response
        raise AssertionError("there is at least one coordinator")

    def _pause(self, pauses: list[float], error: httpx2.TransportError | None = None, least_s: float = 0.0) -> None:
        """Wait before a repetition; raise the error if there were enough of them."""
        if not pauses and error is not None:
            raise error
        time.sleep(min(LONGEST_PAUSE_S, max(pauses.pop(0), least_s)))
        self.repeated += 1


class _ContinuedStream(httpx2.SyncByteStream):
    """The events of a response; when its connection breaks, those that follow come from another response."""

    def __init__(
        self,
        response: httpx2.Response,
        again: Callable[[int, httpx2.TransportError], httpx2.Response],
        *,
        numbered: bool,
    ) -> None:
        self._response, self._again, self._numbered = response, again, numbered

    def __iter__(self) -> Iterator[bytes]:
        passed = known = 0  # events since the latest request; those of it that were passed on before
        while True:
            try:
                for number, event in enumerate(_events(self._response.iter_raw())):
                    if number >= known:
                        yield event
                        passed += 1
                return
            except httpx2.TransportError as error:
                self._response.close()
                self._response = self._again(passed, error)
                if not _is_stream(self._response):
                    status = self._response.status_code
                    self._response.close()
                    raise httpx2.ReadError(f"the next coordinator answers with status {status}") from error
                known, passed = (0, 0) if self._numbered else (passed, passed)

    def close(self) -> None:
        self._response.close()


def _events(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield whole server-sent events, with the empty line that ends each."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n\n")
        for each in whole:
            yield each + b"\n\n"
    if rest:
        yield rest


def is_question(request: httpx2.Request) -> bool:
    """Return whether a request asks a model for an answer, and may have an Idempotency-Key: a vote may not."""
    if request.method != "POST" or not request.url.path.endswith(_ASKING):
        return False
    body = _body(request)
    return body.get("mode", "single") == "single" and not str(body.get("model", "")).startswith("consensus")


def _body(request: httpx2.Request) -> Mapping[str, Any]:
    try:
        found = json.loads(request.content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_continuable(request: httpx2.Request, response: httpx2.Response) -> bool:
    """Return whether a response has the events of one answer, in an order that its repetition has, too."""
    if not (KEY in request.headers and _is_stream(response)):
        return False
    body = _body(request)
    prompts = body.get("prompt", "")
    return body.get("n") in (None, 1) and (isinstance(prompts, str) or len(prompts) < 2)


def _is_stream(response: httpx2.Response) -> bool:
    kind = response.headers.get("Content-Type", "")
    return response.is_success and kind.startswith("text/event-stream") and "Content-Encoding" not in response.headers


def _may_repeat(request: httpx2.Request, error: httpx2.TransportError) -> bool:
    return KEY in request.headers or (request.method == "GET" and not isinstance(error, httpx2.TimeoutException))


def _at(request: httpx2.Request, place: httpx2.URL) -> httpx2.Request:
    """Return a request for another coordinator."""
    url = request.url.copy_with(scheme=place.scheme, host=place.host, port=place.port)
    headers = httpx2.Headers(request.headers)
    headers["Host"] = url.netloc.decode("ascii")
    return httpx2.Request(request.method, url, headers=headers, content=request.content, extensions=request.extensions)


def _seconds(text: str) -> float:
    return float(text) if text.isascii() and text.isdecimal() else 0.0
