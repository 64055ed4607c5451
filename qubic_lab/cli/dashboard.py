"""`qubic-lab dashboard`: the cluster, the votes and the market as they are now, in a browser."""

from typing import Annotated

from typer import Option

from qubic_lab.cli.console import note, require, show_warnings

HTTP = "127.0.0.1:5006"


def dashboard(
    listen: Annotated[str, Option(metavar="HOST:PORT", help="Address for browsers; port 0: a free one.")] = HTTP,
    coordinator: Annotated[
        str | None, Option(metavar="URL", help="The coordinator to watch.", show_default="QUBIC_LAB_COORDINATOR")
    ] = None,
    read_only: Annotated[bool, Option("--read-only", help="Neither ask questions nor change anything.")] = False,
) -> None:
    """Show cluster, votes and market in a browser.

    Questions can be asked there, too. It runs until Ctrl-C or SIGTERM. The coordinator may come and go; without
    one the oracle of this machine's database is shown. With QUBIC_LAB_API_TOKEN it sends that token, and asks its own
    callers for it. Beyond loopback it requires tokens and TLS.
    """
    require("panel", extra="dashboard")
    from qubic_lab.api.http_server import ServeConfig
    from qubic_lab.dashboard.lab import Lab
    from qubic_lab.dashboard.serve import serve
    from qubic_lab.settings import settings
    from qubic_lab.wire.channel import tls_from_settings

    show_warnings()
    config = ServeConfig(
        listen, settings().api_tokens, tls_from_settings(), settings().api_token or "", guard="QUBIC_LAB_API_TOKEN"
    )
    lab = Lab(coordinator, read_only=read_only)
    serve(config, lab, lambda url: note(f"shows {lab.url} at {url}"))
