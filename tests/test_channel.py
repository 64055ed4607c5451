"""Who may connect: nobody beyond this host without mutual TLS; used ports and vanished peers are noticed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
import trustme

from qubic_lab.errors import InputError
from qubic_lab.settings import settings
from qubic_lab.wire.channel import SERVER_OPTIONS, TlsFiles, listen, open_channel, tls_from_settings

LAUNCH = Path(__file__).parents[1] / "launch"
FILES = ("certificate", "key", "authority")
NOTICED_WITHIN_S = 30.0

Serve = Callable[[TlsFiles | None], str]


@pytest.fixture(autouse=True)
def set_tls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TlsFiles], None]]:
    """Keep whoever's environment out; yield a function that sets it."""

    def set_(tls: TlsFiles) -> None:
        for name in FILES:
            monkeypatch.setenv(f"QUBIC_LAB_TLS_{name.upper()}", str(getattr(tls, name)))
        settings.cache_clear()

    for name in FILES:
        monkeypatch.setenv(f"QUBIC_LAB_TLS_{name.upper()}", "")
    settings.cache_clear()
    yield set_
    settings.cache_clear()


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TlsFiles]:
    """Files of a good host and of bad ones."""
    ours, strange = trustme.CA(), trustme.CA()
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    pairs = {
        "good": ours.issue_cert("127.0.0.1", "localhost"),
        "expired": ours.issue_cert("127.0.0.1", not_after=an_hour_ago),
        "other authority": strange.issue_cert("127.0.0.1"),
        "other name": ours.issue_cert("vm-9"),
    }
    found = {}
    for name, pair in pairs.items():
        folder = tmp_path_factory.mktemp("tls")
        paths = {file: folder / f"{file}.pem" for file in FILES}
        pair.cert_chain_pems[0].write_to_path(paths["certificate"])
        pair.private_key_pem.write_to_path(paths["key"])
        ours.cert_pem.write_to_path(paths["authority"])
        found[name] = TlsFiles(**paths)
    return found


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start servers that answer each call with its request, at ports of the system's choice."""
    servers = []

    def start(tls: TlsFiles | None) -> str:
        servers.append(echo_server())
        port = listen(servers[-1], "127.0.0.1:0", tls)
        servers[-1].start()
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(grace=None)


def echo_server() -> grpc.Server:
    """A server that is not started yet."""
    server = grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
    echo = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", {"Echo": echo}),))
    return server


def echoes(channel: grpc.Channel) -> bool:
    """True when a message comes back."""
    with channel:
        return bool(channel.unary_unary("/test/Echo")(b"hello", timeout=10) == b"hello")


def assert_refused(channel: grpc.Channel, details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        echoes(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert re.search(details, caught.value.details())


def test_a_client_with_a_certificate_of_the_authority_is_served(serve: Serve, hosts: dict[str, TlsFiles]) -> None:
    assert echoes(open_channel(serve(hosts["good"]), hosts["good"]))


def test_within_this_host_no_tls_is_needed(serve: Serve, tmp_path: Path) -> None:
    address = serve(None)
    assert echoes(open_channel(address))
    assert echoes(open_channel(address.replace("127.0.0.1", "localhost")))
    server = echo_server()
    listen(server, f"unix:{tmp_path / 'socket'}")
    server.start()
    assert echoes(open_channel(f"unix:{tmp_path / 'socket'}"))
    server.stop(grace=None)


# When a server refuses, the client learns no more than that it hung up, maybe while it was sending.
REFUSED = "closed|reset|Broken pipe|handshake"


@pytest.mark.parametrize("host", ["expired", "other authority"])
def test_a_server_refuses_a_client(host: str, serve: Serve, hosts: dict[str, TlsFiles]) -> None:
    address = serve(hosts["good"])
    assert_refused(open_channel(address, hosts[host]), REFUSED)
    assert echoes(open_channel(address, hosts["good"])), "others are served on"


def test_a_server_refuses_a_client_without_certificate(serve: Serve, hosts: dict[str, TlsFiles]) -> None:
    address = serve(hosts["good"])
    credentials = grpc.ssl_channel_credentials(hosts["good"].authority.read_bytes())
    assert_refused(grpc.secure_channel(address, credentials), REFUSED)
    assert_refused(open_channel(address), REFUSED)


@pytest.mark.parametrize(
    ("host", "details"),
    [("expired", "expired"), ("other authority", "issuer"), ("other name", "Hostname"), (None, "handshake failed")],
)
def test_a_client_refuses_a_server(host: str | None, details: str, serve: Serve, hosts: dict[str, TlsFiles]) -> None:
    address = serve(hosts[host] if host else None)
    assert_refused(open_channel(address, hosts["good"]), details)


@pytest.mark.parametrize("address", ["10.0.0.2:7700", "0.0.0.0:7700", "[::]:7700", "vm-1:7700", "localhost.evil:7700"])
def test_beyond_this_host_tls_is_needed(address: str) -> None:
    with pytest.raises(InputError, match="set QUBIC_LAB_TLS_CERTIFICATE"):
        open_channel(address)
    with pytest.raises(InputError, match="set QUBIC_LAB_TLS_CERTIFICATE"):
        listen(echo_server(), address)


@pytest.mark.parametrize("address", ["", "7700", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "http://127.0.0.1:1"])
def test_a_malformed_address(address: str) -> None:
    with pytest.raises(InputError, match="give HOST:PORT"):
        open_channel(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_used_port_is_an_error_at_once(host: str, serve: Serve) -> None:
    port = serve(None).rpartition(":")[2]
    with pytest.raises(InputError, match=f"{port}: another process holds it"):
        listen(echo_server(), f"{host}:{port}")


def test_tls_comes_from_the_settings(
    serve: Serve, hosts: dict[str, TlsFiles], set_tls: Callable[[TlsFiles], None]
) -> None:
    assert tls_from_settings() is None
    set_tls(hosts["good"])
    assert tls_from_settings() == hosts["good"]
    address = serve(None)
    assert echoes(open_channel(address))
    assert_refused(grpc.insecure_channel(address), REFUSED)


def test_settings_name_three_files_or_none(monkeypatch: pytest.MonkeyPatch, hosts: dict[str, TlsFiles]) -> None:
    monkeypatch.setenv("QUBIC_LAB_TLS_KEY", str(hosts["good"].key))
    settings.cache_clear()
    with pytest.raises(InputError, match="set QUBIC_LAB_TLS_CERTIFICATE and QUBIC_LAB_TLS_AUTHORITY too"):
        open_channel("127.0.0.1:7700")


def test_bad_files_are_named(hosts: dict[str, TlsFiles], tmp_path: Path) -> None:
    good, other = hosts["good"], hosts["expired"]
    text = tmp_path / "text.pem"
    text.write_text("no certificate\n")
    with pytest.raises(InputError, match=r"TLS key .*missing\.pem is no file"):
        TlsFiles(good.certificate, tmp_path / "missing.pem", good.authority)
    with pytest.raises(InputError, match=r"certificate\.pem and .*key\.pem are no certificate and its"):
        TlsFiles(good.certificate, other.key, good.authority)
    with pytest.raises(InputError, match=r"text\.pem and .*key\.pem are no certificate"):
        TlsFiles(text, good.key, good.authority)
    with pytest.raises(InputError, match=r"authority .*text\.pem is no certificate"):
        TlsFiles(good.certificate, good.key, text)


SLEEPY_SERVER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_channel import echo_server, listen
server = echo_server()
print(listen(server, "127.0.0.1:0"), flush=True)
server.start()
time.sleep(600)
"""


def test_a_peer_that_no_longer_answers_is_noticed() -> None:
    """A stopped process keeps its connections open, as a host does that has vanished."""
    command = [sys.executable, "-c", SLEEPY_SERVER, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        with open_channel(f"127.0.0.1:{server.stdout.readline().strip()}") as channel:
            echo = channel.unary_unary("/test/Echo")
            assert echo(b"hello", wait_for_ready=True, timeout=NOTICED_WITHIN_S) == b"hello"
            os.kill(server.pid, signal.SIGSTOP)
            stopped = time.monotonic()
            with pytest.raises(grpc.RpcError, match="ping timeout") as caught:
                echo(b"hello", timeout=2 * NOTICED_WITHIN_S)
            server.kill()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - stopped < NOTICED_WITHIN_S


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_launch_scripts_are_bash_and_tell_their_usage(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    alone = subprocess.run([script], capture_output=True, text=True)
    assert alone.returncode == 2
    assert alone.stderr.startswith(f"usage: {script} ")


def test_certificates_of_the_script_are_good_for_mutual_tls(serve: Serve, tmp_path: Path) -> None:
    for host in ("127.0.0.1", "laptop"):  # the second call keeps the authority
        subprocess.run([LAUNCH / "certificates.sh", tmp_path, "2", host], check=True, capture_output=True)
    server, client = (
        TlsFiles(tmp_path / f"{host}.pem", tmp_path / f"{host}.key", tmp_path / "authority.pem")
        for host in ("127.0.0.1", "laptop")
    )
    assert echoes(open_channel(serve(server), client))
    assert_refused(open_channel(serve(client), client), "Hostname")
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")} == {0o600}
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".key"] * 3 + [".pem"] * 3
