"""Sends alerts in order and at least once: each as a line of the log, and to a webhook if one is set.

The address of the webhook is a secret: it comes from the environment only, and is in no log, error or table.
"""

import asyncio
import hashlib
import hmac
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx2
from pydantic import SecretStr

from qubic_lab.errors import InputError
from qubic_lab.oracle.alerts.store import FAILED, SENT, AlertStore, RiskAlert
from qubic_lab.oracle.ingest.http_rules import LIBRARY_LOGS, USER_AGENT, is_loopback, is_web_address, retry_after_s
from qubic_lab.oracle.model.response import to_plain
from qubic_lab.oracle.model.timestamps import SECOND_US, now_us
from qubic_lab.oracle.store.transactions import Clock
from qubic_lab.settings import settings

NOT_SENT = {"id", "state", "attempts", "last_error", "done_us"}
"""Fields of an alert that are not sent: they change from attempt to attempt."""
LEASE_S = 5.0
"""How long an alert is claimed beyond the timeout of its attempt."""
OLDEST_S = 86_400.0
"""The age at which an alert that could not be sent is given up: it would be no news."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 15.0, 900.0
"""The pause after a failed attempt; it doubles with each such attempt."""
_RETRYABLE = frozenset((httpx2.codes.REQUEST_TIMEOUT, httpx2.codes.TOO_EARLY, httpx2.codes.TOO_MANY_REQUESTS))

_log = logging.getLogger(__name__)


class RetryableError(Exception):
    """An attempt failed, and another one may succeed; `wait_s`: the wait that the receiver asks for."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.wait_s = wait_s or 0.0


class RejectedError(Exception):
    """The receiver rejects a message for good."""


@dataclass(frozen=True)
class Webhook:
    """Where messages are posted: https, or http on this host. Without a `secret` they are not signed.

    `name` is what sets the address.

    Raises:
        InputError: an unusable address; it is not shown.
    """

    url: SecretStr
    secret: SecretStr | None = None
    timeout_s: float = 10.0
    name: str = "QUBIC_LAB_ALERT_WEBHOOK"

    def __post_init__(self) -> None:
        url = self.url.get_secret_value()
        if not is_web_address(url):
            raise InputError(f"{self.name} is no address: give https://HOST/PATH, or http:// on this host")
        if urlsplit(url).scheme == "http" and not is_loopback(url):
            raise InputError(f"{self.name} would send in clear text: give https://…")

    def post(self, key: str, body: bytes) -> None:
        """Post JSON once; equal messages have equal keys.

        Raises:
            RetryableError: a later attempt may succeed.
            RejectedError: the receiver rejects the message for good.
        """
        with _silent_libraries():
            asyncio.run(_post(self, key, body))


def webhook_from_settings() -> Webhook | None:
    """Return the webhook that QUBIC_LAB_ALERT_WEBHOOK and QUBIC_LAB_ALERT_SECRET set; None: none is set.

    Raises:
        InputError: an unusable address; it is not shown.
    """
    url, secret = settings().alert_webhook, settings().alert_secret
    return None if url is None else Webhook(SecretStr(url.get_secret_value().strip()), secret)


@dataclass(frozen=True)
class Delivery:
    """The result of a pass: alerts sent, given up, and left for the next pass or another process."""

    sent: int = 0
    failed: int = 0
    waiting: int = 0


def payload(alert: RiskAlert) -> bytes:
    """Return an alert as JSON in UTF-8, the same bytes at each attempt."""
    return json.dumps(to_plain(alert, NOT_SENT), ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()


def signature(secret: SecretStr, timestamp: int, body: bytes) -> str:
    """Return the HMAC-SHA256 of the timestamp, a full stop and the body, in hexadecimal."""
    message = f"{timestamp}.".encode() + body
    return hmac.new(secret.get_secret_value().encode(), message, hashlib.sha256).hexdigest()


class Deliverer:
    """Sends pending alerts to a webhook, or only logs them without one; several processes may do so at once."""

    def __init__(self, store: AlertStore, webhook: Webhook | None, clock: Clock = now_us) -> None:
        self._store, self._webhook, self._clock = store, webhook, clock
        self._logged: set[int] = set()

    def deliver(self) -> Delivery:
        """Send pending alerts, the oldest first, until one has to wait."""
        sent = failed = 0
        while (alert := self._store.claim(LEASE_S + (self._webhook.timeout_s if self._webhook else 0.0))) is not None:
            if alert.id not in self._logged:
                _log.warning("risk: %s", alert.text)
                self._logged.add(alert.id)
            try:
                if self._webhook is not None:
                    self._webhook.post(alert.key, payload(alert))
            except RejectedError as error:
                self._give_up(alert, str(error))
                failed += 1
            except RetryableError as error:
                if self._clock() - alert.made_us > OLDEST_S * SECOND_US:
                    self._give_up(alert, f"{error}; given up after a day")
                    failed += 1
                    continue
                pause_s = min(FIRST_PAUSE_S * 2.0 ** min(alert.attempts - 1, 10), LONGEST_PAUSE_S)
                self._store.postpone(alert.id, str(error), max(pause_s, error.wait_s))
                _log.warning("alert %s waits: the webhook %s", alert.key, error)
                break
            else:
                self._store.settle(alert.id, SENT)
                sent += 1
        return Delivery(sent, failed, self._store.pending())

    def _give_up(self, alert: RiskAlert, what: str) -> None:
        self._store.settle(alert.id, FAILED, what)
        _log.error("alert %s was not sent: the webhook %s", alert.key, what)


async def _post(webhook: Webhook, key: str, body: bytes) -> None:
    """Post once; the status of the reply decides, and its body is not read."""
    url, timestamp = webhook.url.get_secret_value(), now_us() // SECOND_US
    headers = {
        "Content-Type": "application/json",
        "User-Agent": USER_AGENT,
        "Idempotency-Key": key,
        "X-Qubic-Lab-Timestamp": str(timestamp),
    }
    if webhook.secret is not None:
        headers["X-Qubic-Lab-Signature"] = f"sha256={signature(webhook.secret, timestamp, body)}"
    try:
        client = httpx2.AsyncClient(timeout=webhook.timeout_s, trust_env=not is_loopback(url))
    except (ImportError, OSError, ValueError) as error:  # its text may contain the password of a proxy
        kind = type(error).__name__
        raise RetryableError(f"cannot be asked by way of the environment's proxy or certificates ({kind})") from None
    try:
        async with (
            asyncio.timeout(webhook.timeout_s),
            client,
            client.stream("POST", url, content=body, headers=headers, follow_redirects=False) as response,
        ):
            status, wait = response.status_code, response.headers.get("retry-after")
    except (TimeoutError, httpx2.TimeoutException):
        raise RetryableError(f"gave no answer in {webhook.timeout_s:g} s") from None
    except httpx2.RequestError as error:
        raise RetryableError(f"could not be reached, or broke off ({type(error).__name__})") from None
    except (httpx2.InvalidURL, ValueError):
        raise RejectedError("has an address that cannot be asked") from None
    if status >= 500 or status in _RETRYABLE:
        raise RetryableError(f"failed (HTTP {status})", retry_after_s(wait, now_us()))
    if not 200 <= status < 300:
        raise RejectedError(f"refused it (HTTP {status})")


@contextmanager
def _silent_libraries() -> Iterator[None]:
    """Drop what libraries log in this thread: it contains the address, in several spellings."""
    sending = threading.get_ident()

    def is_other_thread(record: logging.LogRecord) -> bool:
        return threading.get_ident() != sending

    loggers = [logging.getLogger(name) for name in LIBRARY_LOGS]
    for logger in loggers:
        logger.addFilter(is_other_thread)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_other_thread)
