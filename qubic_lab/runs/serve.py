"""Shows the reports in a browser on this machine; pages are made again when a run has ended, and then load again.

The files themselves have no scripts: the one that waits for changes is added to what is served.
"""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.runs.store import reports_folder, runs_folder

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
EVENTS = "/events"
LOOK_EVERY_S = 1.0
SCRIPT = f'<script>new EventSource("{EVENTS}").onmessage = () => location.reload()</script>'.encode()


def newest(folder: Path, pattern: str) -> int:
    """Return when the newest of some files was written (ns), or 0 if there is none."""
    return max((file.stat().st_mtime_ns for file in folder.glob(pattern)), default=0)


class _Handler(SimpleHTTPRequestHandler):
    """Serves a folder of pages, and a stream of events: one whenever a page has changed."""

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        page = file / "index.html" if self.path.endswith("/") else file
        if self.path == EVENTS:
            self._send_events()
        elif page.suffix == ".html" and page.is_file():
            content = page.read_bytes() + SCRIPT
            self._begin("text/html; charset=utf-8", len(content))
            self.wfile.write(content)
        else:
            super().do_GET()

    def _begin(self, kind: str, length: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def _send_events(self) -> None:
        self._begin("text/event-stream")
        folder = Path(self.directory)
        seen = newest(folder, "**/*.html")
        while True:
            time.sleep(LOOK_EVERY_S)
            now = newest(folder, "**/*.html")
            try:
                self.wfile.write(b": nothing new\n\n" if now == seen else b"data: changed\n\n")
            except OSError:  # the reader is gone
                return
            seen = now

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def open_server(folder: Path, port: int) -> ThreadingHTTPServer:
    """Return a server of a folder, on loopback alone, at work in the background; port 0 is any free one.

    Raises:
        InputError: the port cannot be used.
    """
    try:
        server = ThreadingHTTPServer((LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except (OSError, OverflowError) as error:
        raise InputError(f"port {port} of {LOOPBACK} cannot be used ({error}): give another --port") from None
    server.daemon_threads = True  # an open stream does not keep the command
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def serve_reports(port: int, build: Callable[[], object], tell: Callable[[str], object]) -> None:
    """Show all pages until Ctrl-C, and build again whenever a run has ended.

    Raises:
        InputError: the port cannot be used.
    """
    server = open_server(reports_folder(), port)
    tell(f"http://{LOOPBACK}:{server.server_address[1]}/")
    try:
        rebuild_on_change(runs_folder() / "weeks", "*.json", build)
    except KeyboardInterrupt:
        server.shutdown()
        server.server_close()


def rebuild_on_change(watched: Path, pattern: str, build: Callable[[], object]) -> None:
    """Build whenever a file is written that fits the pattern, until interrupted; what fails is logged."""
    seen = newest(watched, pattern)
    while True:
        time.sleep(LOOK_EVERY_S)
        if (now := newest(watched, pattern)) != seen:
            seen = now
            try:
                build()
            except QubicLabError as error:
                log.warning("%s", error)
