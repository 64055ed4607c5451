"""Client of a cluster's coordinators for notebooks and commands; problems are raised as the project's errors."""

import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import httpx2

from qubic_lab import errors
from qubic_lab.api.schemas import ClusterStatus, ConsensusResponse, NodeStatus, QueryResponse, Token
from qubic_lab.core import ChatMessage
from qubic_lab.errors import BusyError, InputError, QubicLabError, UnreachableError
from qubic_lab.settings import settings
from qubic_lab.wire.channel import is_loopback
from qubic_lab.wire.failover import KEY, CoordinatorTransport

CONNECT_S = 5.0
_TRACED = {"X-Qubic-Trace": "1"}
_ERRORS: dict[int, type[QubicLabError]] = {
    400: InputError,
    401: errors.RefusedError,
    403: errors.RefusedError,
    404: errors.NotFoundError,
    409: errors.RequestCancelled,
    413: InputError,
    502: errors.RankError,
    504: errors.DeadlineError,
}


class CoordinatorClient:
    """The coordinators at `url` (by default those of the settings); use it as a context manager, or call `close`.

    The first one that can be reached is asked; `url` may have several with commas. If it is lost while it answers, the
    question is asked again, there or at the next one, with the same key: the answer is the same, and a stream goes on
    where it broke off (see `wire.failover`). Without a `key` of the caller each question gets one, and its work ends
    when the answer is left.

    Raises, in every method:
        UnreachableError: no coordinator answers.
        QubicLabError: the error that its problem describes.
    """

    def __init__(self, url: str | None = None, token: str | None = None, answer_s: float | None = None) -> None:
        """Prepare a client; `token` is by default that of the settings (QUBIC_LAB_API_TOKEN).

        A coordinator that sends nothing for `answer_s` counts as unreachable; None: it may take any time.

        Raises:
            InputError: a URL is invalid, or would send the token to another host in clear text.
        """
        token = token or settings().api_token
        self.urls = tuple(each.strip().rstrip("/") for each in url.split(",")) if url else settings().coordinators
        for each in self.urls:
            _check_url(each, token)
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx2.Timeout(answer_s, connect=CONNECT_S),
            transport=CoordinatorTransport(self.urls, httpx2.HTTPTransport(verify=self._trusted())),
        )

    @property
    def url(self) -> str:
        """The first of its URLs."""
        return self.urls[0]

    def _trusted(self) -> bool | str:
        """Return the file of the authority of its coordinators, or whether that of the system's is meant."""
        encrypted, authority = any(each.startswith("https:") for each in self.urls), settings().tls_authority
        return str(authority) if authority and encrypted else encrypted

    def ask(self, prompt: str, *, key: str | None = None, **options: Any) -> QueryResponse:
        """Return the answer to one question.

        Args:
            prompt: the question.
            key: an idempotency key: a repeated request with the same key gets the first answer, and the work goes on
                when this client hangs up.
            **options: other fields of `schemas.Query`, such as `max_new_tokens`.
        """
        return QueryResponse(**self.call("POST", "/api/ai/query", {"prompt": prompt, **options}, key))

    def stream(
        self, prompt: str, *, key: str | None = None, **options: Any
    ) -> Generator[Token | QueryResponse, None, None]:
        """Yield the tokens of an answer as they arrive, then the whole answer; arguments as in `ask`."""
        for name, value in self._events("/api/ai/query", {"prompt": prompt, "stream": True, **options}, _key(key)):
            content = json.loads(value)
            if name == "error":
                raise _error_of(content["status"], value, None)
            yield Token(**content) if name == "token" else QueryResponse(**content)

    def chat(
        self, messages: Sequence[ChatMessage], *, trace: bool = False, parent: str = "", **options: Any
    ) -> Generator[dict[str, Any], None, None]:
        """Yield the chunks of the next message of a chat, as OpenAI's interface has them; closing it ends the answer.

        Args:
            messages: the chat so far.
            trace: whether the last chunk says where the time went.
            parent: the `traceparent` (W3C) that the spans of this request continue; empty: none.
            **options: other fields of the request, such as `model` and `seed`.
        """
        headers = (_TRACED if trace else {}) | ({"traceparent": parent} if parent else {})
        said = [{"role": each.role, "content": each.content} for each in messages]
        body = {"messages": said, "stream": True, "stream_options": {"include_usage": True}, **options}
        for _, value in self._events("/v1/chat/completions", body, headers):
            if value != "[DONE]":
                chunk: dict[str, Any] = json.loads(value)
                if "error" in chunk:
                    raise QubicLabError(chunk["error"]["message"])
                yield chunk

    def vote(self, prompt: str, **options: Any) -> ConsensusResponse:
        """Return the result of a vote on one question.

        Args:
            prompt: the question.
            **options: other fields of `consensus.ConsensusQuery`, such as `nodes`, `samples` and `mode`.
        """
        return ConsensusResponse(**self.call("POST", "/api/ai/consensus_query", {"prompt": prompt, **options}))

    def follow_vote(self, vote: str) -> Generator[tuple[str, dict[str, Any]], None, None]:
        """Yield the events of a vote while it is held: `count` after each answer, `round`, and `end`."""
        path = f"/api/consensus/history/{quote(vote, safe='')}/events"
        for name, value in self._events(path, method="GET"):
            yield name, json.loads(value)

    def oracle(self, about: str, **parameters: Any) -> dict[str, Any]:
        """Return what the market oracle knows, such as a `market_overview`, or the `price_analysis` of a `coin`."""
        found: dict[str, Any] = self.call("GET", f"/api/oracle/{quote(about, safe='')}?{urlencode(parameters)}")
        return found

    def status(self) -> ClusterStatus:
        """Return the state of the cluster."""
        return ClusterStatus(**self.call("GET", "/api/cluster/status"))

    def nodes(self) -> list[NodeStatus]:
        """Return all nodes as the coordinator sees them."""
        return [NodeStatus(**each) for each in self.call("GET", "/api/cluster/nodes")]

    def links(self, node: str, iperf3: bool = False) -> dict[str, Any]:
        """Return a node's measured links to all others (`cluster.links.NodeLinkReport`), also by iperf3 if asked."""
        path = f"/api/cluster/nodes/{quote(node, safe='')}/links"
        found: dict[str, Any] = self.call("GET", path + ("?iperf3=true" if iperf3 else ""))
        return found

    def call(self, method: str, path: str, body: Any = None, key: str | None = None) -> Any:
        """Return the content of one response."""
        text = self.text(method, path, body, key)
        return json.loads(text) if text else None

    def text(self, method: str, path: str, body: Any = None, key: str | None = None) -> str:
        """Return one response as it is."""
        try:
            response = self._http.request(method, path, json=body, headers=_key(key))
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error
        if response.is_error:
            raise _error_of(response.status_code, response.text, response.headers.get("Retry-After"))
        return response.text

    def _events(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None, method: str = "POST"
    ) -> Generator[tuple[str, str], None, None]:
        """Yield the names (empty: none) and the data of a response's events."""
        try:
            with self._http.stream(method, path, json=body, headers=headers) as response:
                if response.is_error:
                    response.read()
                    raise _error_of(response.status_code, response.text, response.headers.get("Retry-After"))
                name = ""
                for line in response.iter_lines():
                    field, _, value = line.partition(": ")
                    if field == "event":
                        name = value
                    elif field == "data":
                        yield name, value
        except httpx2.TransportError as error:
            raise self._unreachable(error) from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def __enter__(self) -> "CoordinatorClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _unreachable(self, error: Exception) -> UnreachableError:
        return UnreachableError(
            f"no coordinator answers at {', '.join(self.urls)} ({error}): start one with qubic-lab cluster up (or, for "
            "chats, qubic-lab serve), or set QUBIC_LAB_COORDINATOR"
        )


def _check_url(url: str, token: str | None) -> None:
    """Raise an InputError if a URL is not that of a coordinator, or would send the token in clear text."""
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, ValueError) as error:
        raise InputError(f"{url!r} is not a coordinator's URL ({error}): give http://HOST:PORT") from error
    if address.scheme not in ("http", "https") or not address.host:
        raise InputError(f"{url!r} is not a coordinator's URL: give http://HOST:PORT")
    if token and address.scheme == "http" and not is_loopback(address.host):
        raise InputError(f"{url} would send the token in clear text: give https://{address.netloc.decode()}")


def _key(key: str | None) -> dict[str, str]:
    return {} if key is None else {KEY: key}


def _error_of(status: int, text: str, retry_after: str | None) -> QubicLabError:
    """Return the error that a problem describes."""
    try:
        content = json.loads(text)
        detail = str(content["error"]["message"] if "error" in content else content["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"status {status}: {text[:200]}"
    if status == 429 or (status == 503 and retry_after):
        return BusyError(detail, float(retry_after) if retry_after and retry_after.isdigit() else None)
    return _ERRORS.get(status, QubicLabError)(detail)
