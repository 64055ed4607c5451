"""Access control: hashed bearer tokens with a request rate each, a limit on the body size, and no foreign pages."""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import redis
import yaml
from limits import RateLimitItemPerMinute
from limits.errors import StorageError
from limits.storage import RedisStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qubic_lab.api.problems import Problem
from qubic_lab.checked_yaml import STRICT, check_content, read_yaml
from qubic_lab.errors import InputError, check_at_least
from qubic_lab.wire.channel import is_loopback

PER_MINUTE = 120
MOST_BODY_BYTES = 2**20
OPEN = ("/",)
"""Paths that need no token; they say nothing of what runs here then."""
READING = ("GET", "HEAD", "OPTIONS")
MOST_LENGTH_DIGITS = 20
_PREFIX = "qlab_"


@dataclass(frozen=True)
class ApiToken:
    """A client's access: its name, the SHA-256 of its token (hex), its requests per minute, and whether it only reads.

    Tokens are 256 random bits, so a plain hash is safe: they cannot be guessed.

    Raises:
        InputError: a value is invalid.
    """

    __pydantic_config__ = STRICT
    name: str
    sha256: str
    per_minute: int = PER_MINUTE
    read_only: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.@-]{1,100}", self.name):
            raise InputError(f"name {self.name!r}: give 1 to 100 letters, digits and . _ - @")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise InputError(f"sha256 of {self.name} is not a SHA-256: give 64 hexadecimal digits")
        check_at_least(f"per_minute of {self.name}", self.per_minute, 1)


def new_token() -> str:
    """Return a new random token."""
    return _PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the hash that is stored for a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def find_token(token: str, known: Sequence[ApiToken]) -> ApiToken | None:
    """Return the access that a token gives, or None; wrong tokens take as long as right ones."""
    digest = hash_token(token)
    found = [each for each in known if hmac.compare_digest(each.sha256, digest)]
    return found[0] if found else None


def read_tokens(path: Path) -> list[ApiToken]:
    """Read a token file; an InputError if it cannot be read or is invalid."""
    try:
        return check_content(list[ApiToken], read_yaml(path) or [], path)
    except InputError as error:
        raise InputError(f"token file {error} (qubic-lab token add makes one)") from error


def write_tokens(path: Path, accesses: Sequence[ApiToken]) -> None:
    """Write a token file atomically, readable only by its owner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    new.touch(mode=0o600)
    new.write_text(yaml.safe_dump([asdict(each) for each in accesses], sort_keys=False))
    new.replace(path)


class TokenFile:
    """A token file that is read again after a change; while it is unreadable, nobody has access.

    Raises:
        InputError: it cannot be read at first.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._accesses = read_tokens(path)

    def __call__(self) -> list[ApiToken]:
        """Return the current tokens."""
        try:
            found = self._path.stat()
            stamp = (found.st_mtime_ns, found.st_size, found.st_ino)
            if stamp != self._stamp:
                self._accesses, self._stamp = read_tokens(self._path), stamp
        except (OSError, InputError):
            self._accesses, self._stamp = [], None
        return self._accesses


class AuthMiddleware:
    """Admits requests with a known token, up to its rate; rates count over all coordinators; no limiter, no rate.

    Those with a token that only reads may neither ask questions nor change anything.
    """

    def __init__(
        self, app: ASGIApp, accesses: Callable[[], list[ApiToken]], limiter: MovingWindowRateLimiter | None
    ) -> None:
        self._app, self._accesses, self._limiter = app, accesses, limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind, _, token = Headers(scope=scope).get("authorization", "").partition(" ")
        access = find_token(token.strip(), self._accesses()) if kind.lower() == "bearer" else None
        if access is None and not token and scope["path"] in OPEN and scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        if access is None:
            what = "the token is not known" if token else "no token was sent"
            detail = f"{what}: send the header Authorization: Bearer TOKEN"
            await Problem(401, "No access", detail, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        if access.read_only and scope["method"] not in READING:
            detail = (
                f"the token of {access.name} only reads, and {scope['method']} {scope['path']} asks or changes "
                "something: send a token that was added without --read-only"
            )
            await Problem(403, "Refused", detail)(scope, receive, send)
            return
        try:
            wait_s = await run_in_threadpool(_take_turn, self._limiter, access) if self._limiter else None
        except StorageError:
            detail = "requests cannot be counted now: Redis does not answer"
            await Problem(503, "Out of order", detail)(scope, receive, send)
            return
        if wait_s is not None:
            detail = f"{access.name} may send {access.per_minute} requests a minute: send this one later"
            after = {"Retry-After": str(math.ceil(wait_s))}
            await Problem(429, "Too many requests", detail, after)(scope, receive, send)
            return
        scope.setdefault("state", {}).update(client=access.name, read_only=access.read_only)
        await self._app(scope, receive, send)


class BrowserGuardMiddleware:
    """Refuses what a foreign page makes a browser send.

    A request that changes something and names another origin is refused. Unless `any_host`, so is one that was sent to
    another name than that of loopback: a page whose name was made to point at this host (DNS rebinding) could read the
    answers. With tokens any name is fine, because a page does not know them. Pages of `origins` are not foreign.
    """

    def __init__(self, app: ASGIApp, any_host: bool, origins: Sequence[str] = ()) -> None:
        self._app, self._any_host, self._origins = app, any_host, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (detail := self._objection(scope["method"], Headers(scope=scope))):
            await Problem(403, "Refused", detail)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _objection(self, method: str, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_host and not is_loopback(_name_of(host)):
            return f"this server asks for no tokens and is not called {host[:100]!r}: use localhost or 127.0.0.1"
        if origin is None or method in READING or origin in self._origins:
            return None
        if origin.partition("://")[2] != host:
            return f"a page of {origin[:100]!r} may not change anything here: QUBIC_LAB_BROWSER_ORIGINS can admit it"
        return None


def read_origins(text: str) -> tuple[str, ...]:
    """Return origins from a text with commas; an InputError if one is none, such as `*`, which would be every page."""
    origins = tuple(each.strip() for each in text.split(",") if each.strip())
    for each in origins:
        if not re.fullmatch(r"https?://[\w.-]+(:\d+)?|https?://\[[\w:.]+\](:\d+)?", each):
            raise InputError(f"QUBIC_LAB_BROWSER_ORIGINS has {each!r}: give origins, as in http://localhost:3000")
    return origins


def _name_of(host: str) -> str:
    """Return the name or address in a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


class BodyLimitMiddleware:
    """Refuses bodies of more than `most_bytes` bytes, by their declared or actual length."""

    def __init__(self, app: ASGIApp, most_bytes: int = MOST_BODY_BYTES) -> None:
        self._app, self._most_bytes = app, most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        detail = f"the body has more than {self._most_bytes:,} bytes: send a shorter prompt, or fewer of them"
        declared = Headers(scope=scope).get("content-length", "0")
        # Python refuses to read numbers of thousands of digits.
        if not declared.isdecimal() or len(declared) > MOST_LENGTH_DIGITS or int(declared) > self._most_bytes:
            await Problem(413, "Too large", detail)(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._most_bytes:
                raise HTTPException(413, detail)
            return message

        await self._app(scope, counted, send)


def make_limiter(client: "redis.Redis") -> MovingWindowRateLimiter:
    """Return a limiter that counts in Redis, shared by all coordinators."""
    storage = RedisStorage("redis://", connection_pool=client.connection_pool, wrap_exceptions=True)
    return MovingWindowRateLimiter(storage)


def _take_turn(limiter: MovingWindowRateLimiter, access: ApiToken) -> float | None:
    """Count a request and return None, or return the seconds to wait if the rate is exceeded."""
    rate = RateLimitItemPerMinute(access.per_minute)
    if limiter.hit(rate, access.name):
        return None
    return max(1.0, limiter.get_window_stats(rate, access.name).reset_time - time.time())
