"""Who may connect: nobody beyond this host without mutual TLS; used ports and vanished peers are noticed."""

import logging
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import trustme
from anyio.from_thread import start_blocking_portal

from qubic_lab.errors import InputError
from qubic_lab.wire.certificates import describe, make_certificates, renew_certificates
from qubic_lab.wire.channel import SERVER_OPTIONS, TlsFiles, listen, open_channel, peer_names, tls_from_settings

LAUNCH = Path(__file__).parents[1] / "launch"
FILES = ("certificate", "key", "authority")
NOTICED_WITHIN_S = 60.0
pytestmark = pytest.mark.usefixtures("no_tls")

Serve = Callable[[TlsFiles | None], str]
SetSettings = Callable[..., None]


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
    return {name: written(tmp_path_factory.mktemp("tls"), pair, ours) for name, pair in pairs.items()}


def written(folder: Path, pair: trustme.LeafCert, authority: trustme.CA) -> TlsFiles:
    """Write the files of a host."""
    paths = {file: folder / f"{file}.pem" for file in FILES}
    pair.cert_chain_pems[0].write_to_path(paths["certificate"])
    pair.private_key_pem.write_to_path(paths["key"])
    authority.cert_pem.write_to_path(paths["authority"])
    return TlsFiles(**paths)


@contextmanager
def threads() -> Iterator[Serve]:
    """Start servers of grpc."""
    servers = []

    def start(tls: TlsFiles | None) -> str:
        servers.append(echo_server())
        port = listen(servers[-1], "127.0.0.1:0", tls)
        servers[-1].start()
        return f"127.0.0.1:{port}"

    yield start
    for server in servers:
        server.stop(grace=None)


@contextmanager
def event_loop() -> Iterator[Serve]:
    """Start servers of grpc.aio, on an event loop in a thread of its own."""
    servers = []

    async def start_one(tls: TlsFiles | None) -> int:
        async def echo(request: bytes, context: Any) -> bytes:
            return request

        async def who(request: bytes, context: Any) -> bytes:
            return names_shown(context)

        server = grpc.aio.server(options=SERVER_OPTIONS)
        add_methods(server, echo, who)
        servers.append(server)
        port = listen(server, "127.0.0.1:0", tls)
        await server.start()
        return port

    with start_blocking_portal() as portal:
        yield lambda tls: f"127.0.0.1:{portal.call(start_one, tls)}"
        for server in servers:
            portal.call(server.stop, None)


@pytest.fixture(params=[threads, event_loop], ids=["grpc", "grpc.aio"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Start servers of either kind that answer each call with its request, at ports of the system's choice."""
    with request.param() as start:
        yield start


def echo_server() -> grpc.Server:
    """A server that is not started yet."""
    server = grpc.server(ThreadPoolExecutor(2), options=SERVER_OPTIONS)
    add_methods(server, lambda request, context: request, lambda request, context: names_shown(context))
    return server


def add_methods(server: grpc.Server | grpc.aio.Server, echo: Any, who: Any) -> None:
    methods = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in (("Echo", echo), ("Who", who))}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test", methods),))


def names_shown(context: Any) -> bytes:
    return " ".join(sorted(peer_names(context))).encode()


def learned(channel: grpc.Channel) -> str:
    """The names that the server learns of the client."""
    with channel:
        return str(channel.unary_unary("/test/Who")(b"", timeout=60).decode())


def echoes(channel: grpc.Channel) -> bool:
    """True when a message comes back."""
    with channel:
        return bool(channel.unary_unary("/test/Echo")(b"hello", timeout=60) == b"hello")


def assert_refused(channel: grpc.Channel, details: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        echoes(channel)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert re.search(details, caught.value.details())


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
    assert_refused(open_channel(address), REFUSED)
    credentials = grpc.ssl_channel_credentials(hosts["good"].authority.read_bytes())
    assert_refused(grpc.secure_channel(address, credentials), REFUSED)
    assert echoes(open_channel(address, hosts["good"])), "others are served on"


@pytest.mark.parametrize(
    ("host", "details"),
    [("expired", "expired"), ("other authority", "issuer"), ("other name", "Hostname"), (None, "handshake failed")],
)
def test_a_client_refuses_a_server(host: str | None, details: str, serve: Serve, hosts: dict[str, TlsFiles]) -> None:
    address = serve(hosts[host] if host else None)
    assert_refused(open_channel(address, hosts["good"]), details)


BEYOND = ["10.0.0.2:7700", "0.0.0.0:7700", "[::]:7700", "vm-1:7700", "localhost.evil:7700"]
MALFORMED = ["", "7700", "127.0.0.1", "127.0.0.1:", "127.0.0.1:65536", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("address", "message"),
    [(each, "set QUBIC_LAB_TLS_CERTIFICATE") for each in BEYOND] + [(each, "give HOST:PORT") for each in MALFORMED],
)
def test_beyond_this_host_tls_is_needed_and_an_address_that_is_none_is_refused(address: str, message: str) -> None:
    for use in (open_channel, partial(listen, echo_server())):
        with pytest.raises(InputError, match=message):
            use(address)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_used_port_is_an_error_at_once(host: str, serve: Serve) -> None:
    port = serve(None).rpartition(":")[2]
    with pytest.raises(InputError, match=f"{port}: another process uses it"):
        listen(echo_server(), f"{host}:{port}")


def test_tls_comes_from_the_settings(serve: Serve, hosts: dict[str, TlsFiles], set_settings: SetSettings) -> None:
    assert tls_from_settings() is None
    set_settings(tls_key=hosts["good"].key)
    with pytest.raises(InputError, match="set QUBIC_LAB_TLS_CERTIFICATE and QUBIC_LAB_TLS_AUTHORITY too"):
        open_channel("127.0.0.1:7700")
    set_settings(**{f"tls_{name}": path for name, path in vars(hosts["good"]).items()})
    assert tls_from_settings() == hosts["good"]
    address = serve(None)
    assert echoes(open_channel(address))
    assert_refused(grpc.insecure_channel(address), REFUSED)


def test_bad_files_are_named(hosts: dict[str, TlsFiles], tmp_path: Path) -> None:
    text = tmp_path / "text.pem"
    text.write_text("no certificate\n")
    for wrong, message in (
        ({"key": tmp_path / "missing.pem"}, r"TLS key .*missing\.pem cannot be read"),
        ({"key": hosts["expired"].key}, r"certificate\.pem and .*key\.pem are not a certificate and its"),
        ({"certificate": text}, r"text\.pem and .*key\.pem are not a certificate"),
        ({"authority": text}, r"authority .*text\.pem is not a certificate"),
    ):
        with pytest.raises(InputError, match=message):
            replace(hosts["good"], **wrong)


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
            with pytest.raises(grpc.RpcError, match="ping timeout") as caught:
                echo(b"hello", timeout=NOTICED_WITHIN_S)
            server.kill()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sh")), ids=lambda path: path.name)
def test_launch_scripts_are_bash_and_tell_their_usage(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    alone = subprocess.run([script], capture_output=True, text=True)
    assert alone.returncode == 2
    assert alone.stderr.startswith(f"usage: {script} ")


NOW = datetime.now(UTC)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log warned of; other libraries log too."""
    ours = ("qubic_lab.wire.channel", logging.WARNING)
    return [text for *source, text in caplog.record_tuples if tuple(source) == ours]


def files_of(folder: Path, name: str) -> TlsFiles:
    return TlsFiles(folder / f"{name}.pem", folder / f"{name}.key", folder / "authority.pem")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the certificates of a server and of a client."""
    return make_certificates(tmp_path / "tls", [["127.0.0.1"], ["laptop"]], NOW)[0].parent


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """The same by another authority."""
    return make_certificates(tmp_path / "other", [["127.0.0.1"], ["laptop"]], NOW)[0].parent


def serial(path: Path) -> str:
    return describe(path.read_bytes()).serial


def serial_shown(address: str, client: TlsFiles) -> str:
    """Shake hands by other means than gRPC, whose client does not tell what the server shows."""
    context = ssl.create_default_context(cafile=client.authority)
    context.load_cert_chain(client.certificate, client.key)
    context.set_alpn_protocols(["h2"])
    host, _, port = address.partition(":")
    with (
        socket.create_connection((host, int(port)), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname=host) as secured,
    ):
        shown = secured.getpeercert(binary_form=True)
    assert shown is not None
    return describe(ssl.DER_cert_to_PEM_cert(shown).encode()).serial


def test_a_server_learns_the_names_that_a_client_shows(serve: Serve, folder: Path) -> None:
    make_certificates(folder, [["fd00::2", "10.0.0.2", "vm-1.lab"], ["x" * 50 + ".lab" * 5]], NOW)
    address = serve(files_of(folder, "127.0.0.1"))
    for name, names in (
        ("fd00--2", "10.0.0.2 fd00::2 vm-1.lab"),
        ("laptop", "laptop"),
        ("x" * 50 + ".lab" * 5, "x" * 50 + ".lab" * 5),  # too long for a common name
    ):
        assert learned(open_channel(address, files_of(folder, name))) == names
    assert learned(open_channel(serve(None))) == "", "without TLS it learns none"


@pytest.mark.parametrize(
    ("shown", "name"), [(("a@b.example", "vm-1"), "vm-1"), (("a@b.example",), "worker")], ids=("host", "no host")
)
def test_a_common_name_counts_only_alone(shown: tuple[str, ...], name: str, serve: Serve, tmp_path: Path) -> None:
    authority = trustme.CA()
    address = serve(written(tmp_path, authority.issue_cert("127.0.0.1"), authority))
    (client := tmp_path / "client").mkdir()
    files = written(client, authority.issue_cert(*shown, common_name="worker"), authority)
    assert learned(open_channel(address, files)) == name


def test_a_renewed_certificate_is_shown_with_the_next_handshake(serve: Serve, folder: Path) -> None:
    client, certificate = files_of(folder, "laptop"), folder / "127.0.0.1.pem"
    address = serve(files_of(folder, "127.0.0.1"))
    first = serial(certificate)
    assert serial_shown(address, client) == first
    with open_channel(address, client) as channel:
        echo = channel.unary_unary("/test/Echo")
        assert echo(b"hello", timeout=60) == b"hello"
        renew_certificates(folder, ["127.0.0.1"], NOW)
        assert serial_shown(address, client) == serial(certificate) != first
        assert echo(b"hello", timeout=60) == b"hello", "what is connected stays so"
    assert echoes(open_channel(address, client))


def test_a_running_server_changes_to_another_authority(serve: Serve, folder: Path, other: Path) -> None:
    old, new = files_of(folder, "laptop"), files_of(other, "laptop")
    shutil.copytree(folder, live := folder.with_name("live"))
    address = serve(files_of(live, "127.0.0.1"))
    assert echoes(open_channel(address, old))
    assert_refused(open_channel(address, new), "issuer|verify")
    for name in ("127.0.0.1.pem", "127.0.0.1.key", "authority.pem"):
        (other / name).replace(live / name)
    shutil.copy(live / "authority.pem", other)
    assert_refused(open_channel(address, old), "issuer|verify")
    assert echoes(open_channel(address, new))


def test_unfit_files_are_not_taken(serve: Serve, folder: Path, other: Path, caplog: pytest.LogCaptureFixture) -> None:
    client, certificate, key = files_of(folder, "laptop"), folder / "127.0.0.1.pem", folder / "127.0.0.1.key"
    address = serve(files_of(folder, "127.0.0.1"))
    first = serial(certificate)
    renew_certificates(folder, ["127.0.0.1"], NOW)
    content, fitting_key = certificate.read_bytes(), key.read_bytes()
    shutil.copy(other / "127.0.0.1.key", key)
    for _ in range(2):
        assert serial_shown(address, client) == first
    [warning] = warnings(caplog)
    assert "continues with the previous files" in warning
    assert f"{key} are not a certificate and its unencrypted key" in warning
    key.write_bytes(fitting_key)
    certificate.unlink()
    assert serial_shown(address, client) == first
    certificate.write_bytes(content[:300])
    assert serial_shown(address, client) == first
    certificate.write_bytes(content)
    assert serial_shown(address, client) == serial(certificate) != first
    assert len(warnings(caplog)) == 3


def test_the_log_warns_of_what_soon_ends(serve: Serve, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    client = files_of(folder, "laptop")
    address = serve(files_of(folder, "127.0.0.1"))
    assert warnings(caplog) == []
    renew_certificates(folder, ["127.0.0.1"], NOW, days=10)
    for _ in range(2):
        assert echoes(open_channel(address, client))
    assert len(warnings(caplog)) == 1, "as it is renewed"
    serve(files_of(folder, "127.0.0.1"))
    assert len(warnings(caplog)) == 2, "as a server starts"
    open_channel(address, files_of(folder, "127.0.0.1")).close()
    assert len(warnings(caplog)) == 3, "as a channel is opened"
    for warning in warnings(caplog):
        assert warning.startswith(f"{folder / '127.0.0.1.pem'}: the certificate of 127.0.0.1 expires on")


def test_a_client_can_know_that_its_files_have_changed(serve: Serve, folder: Path, other: Path) -> None:
    shutil.copytree(folder, live := folder.with_name("live"))
    files = files_of(live, "laptop")
    stamp = files.stamp()
    address = serve(files_of(other, "127.0.0.1"))
    assert_refused(open_channel(address, files), "issuer|verify")
    assert files.stamp() == stamp
    files.authority.write_bytes(b"-----BEGIN")
    assert files.stamp() != stamp
    with pytest.raises(InputError, match=r"authority\.pem is not a certificate"):
        open_channel(address, files)
    for name in ("laptop.pem", "laptop.key", "authority.pem"):
        shutil.copy(other / name, live)
    assert files.stamp() != stamp
    assert echoes(open_channel(address, files)), "as the files are now"
