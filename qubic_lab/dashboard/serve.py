"""The dashboard's server: one watch for all browsers, who may look, and its end."""

import secrets
import signal
import socket
from collections.abc import Callable
from typing import Any

import panel as pn
from bokeh.server.auth_provider import AuthProvider
from tornado.ioloop import IOLoop
from tornado.web import RequestHandler

from qubic_lab.api.access import find_token, hash_token
from qubic_lab.api.http_server import Accesses, ServeConfig
from qubic_lab.dashboard.lab import Lab
from qubic_lab.dashboard.page import Dashboard
from qubic_lab.dashboard.rendering import render
from qubic_lab.dashboard.section import page_style
from qubic_lab.dashboard.traces import MOST_BYTES, PATH, Traces
from qubic_lab.errors import InputError
from qubic_lab.runs.language import ENGLISH, LANGUAGES
from qubic_lab.wire.channel import is_loopback, with_port

COOKIE, LOGIN = "qubic_lab_token", "/login"
VIEWER = "qubic_lab_viewer"
"""The attribute of a request that says whose token let it in."""
THEMES = ("light", "dark")


def serve(config: ServeConfig, lab: Lab, listening: Callable[[str], None], pace: float = 1.0) -> None:
    """Serve until SIGTERM or SIGINT; calls `listening` with the URL for browsers once they can connect.

    `pace` stretches the times of the watch.

    Raises:
        InputError: the address is in use, or the tokens cannot be read.
    """
    watch = lab.watch(pace=pace).start()

    def page() -> Any:
        tag, theme = language_of(_argument("lang"), pn.state.headers.get("Accept-Language", "")), _argument("theme")
        pn.config.global_css = [page_style(theme if theme in THEMES else "")]
        return Dashboard(lab, watch, tag, may_act=_may_act(accesses))

    accesses = config.accesses()
    options: dict[str, Any] = {}
    if accesses is not None:
        options = {"auth_provider": TokenAuth(accesses), "cookie_secret": secrets.token_hex(32)}
    if config.tls:
        options |= {"ssl_certfile": str(config.tls.certificate), "ssl_keyfile": str(config.tls.key)}
    port = config.port or _free_port(config.host)
    try:
        server = pn.io.server.get_server(
            page,
            address=config.host,
            port=port,
            websocket_origin=[f"{name}:{port}" for name in _names(config.host)],
            title="Qubic Lab",
            show=False,
            start=False,
            include_headers=["Accept-Language"],  # the rest would stand in the page, for scripts to read
            include_cookies=[],
            extra_patterns=[(PATH, Spans, {"traces": lab.traces, "accesses": accesses})],
            **options,
        )
    except OSError as error:
        raise InputError(f"cannot listen at {config.listen} ({error}): choose another port") from error
    loop = IOLoop.current()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: loop.add_callback_from_signal(loop.stop))
    server.start()
    listening(with_port(config.url, port))
    try:
        loop.start()
    finally:
        watch.end()
        server.stop()


class Spans(RequestHandler):
    """Takes spans that processes of the cluster send; with tokens, of those who show one."""

    def initialize(self, traces: Traces, accesses: Accesses | None) -> None:
        """Remember where to keep them, and who may send them."""
        self._traces, self._accesses = traces, accesses

    def post(self) -> None:
        """Keep the spans of questions that were asked here."""
        body = self.request.body
        if self._accesses is not None:
            _, _, token = self.request.headers.get("Authorization", "").partition(" ")
            access = find_token(token.strip(), self._accesses())
            if access is None or access.read_only:
                self.send_error(401 if access is None else 403)
                return
        if len(body) > MOST_BYTES or self.request.headers.get("Content-Encoding"):
            self.send_error(413)
            return
        try:
            self._traces.add(body)
        except ValueError:
            self.send_error(400)
            return
        self.set_header("Content-Type", "application/x-protobuf")


def _may_act(accesses: Accesses | None) -> Callable[[], bool]:
    """Return what says whether whoever opened this page may ask and change: their token is known and not a reader's."""
    if accesses is None:
        return lambda: True
    name = getattr(pn.state.curdoc.session_context.request, VIEWER, None)
    return lambda: any(each.name == name and not each.read_only for each in accesses())


def _names(host: str) -> list[str]:
    """Return the names by which browsers may call: a page of another one could lead them here."""
    return [host, "localhost", "127.0.0.1"] if is_loopback(host) else ["*"]


def _free_port(host: str) -> int:
    with socket.socket() as taken:
        taken.bind((host, 0))
        return int(taken.getsockname()[1])


def language_of(asked: str, accepted: str) -> str:
    """Return the language of a page: the one that is asked for, else the first accepted one that there is."""
    for wanted in (asked, *(each.partition(";")[0].strip() for each in accepted.split(","))):
        for tag in LANGUAGES:
            if wanted.lower() in (tag.lower(), "zh-hant", "zh") and (tag != ENGLISH) == wanted.lower().startswith("zh"):
                return tag
            if tag == ENGLISH and wanted.lower().startswith("en"):
                return tag
    return ENGLISH


def _argument(name: str) -> str:
    values = (pn.state.session_args or {}).get(name, [b""])
    return bytes(values[0]).decode(errors="replace")


class TokenAuth(AuthProvider):
    """Lets those in who send a known token as a bearer, or have sent it with the form before."""

    def __init__(self, accesses: Accesses) -> None:
        self._accesses = accesses
        super().__init__()

    @property
    def get_user(self) -> Callable[[RequestHandler], str | None]:
        """Return what says who a request is from; None: nobody who may look."""

        def user(handler: RequestHandler) -> str | None:
            kind, _, token = handler.request.headers.get("Authorization", "").partition(" ")
            if kind.lower() == "bearer":
                found = find_token(token.strip(), self._accesses())
            else:
                entered = (handler.get_secure_cookie(COOKIE) or b"").decode()  # signed: nobody else can have made it
                found = next((each for each in self._accesses() if each.sha256 == entered), None)
            setattr(handler.request, VIEWER, found.name if found else None)
            return found.name if found else None

        return user

    @property
    def login_url(self) -> str:
        """The page with the form."""
        return LOGIN

    get_user_async = get_login_url = logout_url = logout_handler = None

    @property
    def login_handler(self) -> type[RequestHandler]:
        """Return the handler of the form."""
        accesses = self._accesses

        class Login(RequestHandler):
            """Asks for a token, and remembers its hash in a cookie that no script can read."""

            def get(self) -> None:
                self.write(render("login", wrong=False))

            def post(self) -> None:
                token = self.get_body_argument("token", "").strip()
                if find_token(token, accesses()) is None:
                    self.set_status(403)
                    self.write(render("login", wrong=True))
                    return
                secure = self.request.protocol == "https"
                self.set_secure_cookie(
                    COOKIE, hash_token(token), httponly=True, samesite="Strict", secure=secure, expires_days=None
                )
                self.redirect("/")

        return Login
