"""The registry: who is known, for how long, to whom; and who may speak for a node."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import redis

from qubic_lab.cluster.node import CALL_S
from qubic_lab.cluster.redis_server import RedisServer, connect
from qubic_lab.cluster.registry import (
    MOST_BYTES,
    PATIENCE_S,
    REMOVED_S,
    NodeRecord,
    Registry,
    RegistryService,
    check_name,
)
from qubic_lab.errors import InputError, NotFoundError, QubicLabError, RefusedError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire.certificates import make_certificates
from qubic_lab.wire.channel import SERVER_OPTIONS, TlsFiles, open_async_channel
from qubic_lab.wire.members import MemberGuard, listen_as
from qubic_lab.wire.services import REGISTRY_SERVICE, add_service, stub_of

NAMES = count()
REMOVED_MS = round(REMOVED_S * 1_000)
LOOPBACK = "127.0.0.1"
MakeStub = Callable[[TlsFiles], Any]
Hosts = dict[str, TlsFiles]


@pytest.fixture
def registry(client: redis.Redis) -> Registry:
    return Registry(client, f"registry-{next(NAMES)}")


@pytest.fixture
def session(registry: Registry) -> str:
    """The session of node "a", which is registered."""
    return registry.register(registration())


def registration(node: str = "a", **fields: Any) -> pb.NodeRegistration:
    capabilities = pb.Capabilities(model="echo", slots=4, tokens_per_s=10.0, layers=[2, 2])
    usual = {"node": node, "address": "127.0.0.1:7001", "type": "whole", "identity": f"that of {node}"}
    return pb.NodeRegistration(**usual | {"capabilities": capabilities} | fields)


def only(registry: Registry) -> NodeRecord:
    [record] = registry.nodes()
    return record


def test_a_registered_node_is_known_with_its_latest_state(registry: Registry, session: str) -> None:
    assert only(registry).registration == registration()
    assert not only(registry).state.ready
    state = pb.NodeState(ready=True, cpu_share=0.5, loads={"one": pb.Load(requests=2, tokens=64)}, trouble="none")
    registry.beat("a", session, state)
    assert only(registry).state == state
    registry.clock_offset_ms += 15_000
    assert 15.0 <= only(registry).age_s <= only(registry).registered_s < REMOVED_S
    registry.beat("a", session, state)
    assert only(registry).age_s < 15.0 <= only(registry).registered_s


def test_nodes_come_by_name_and_all_coordinators_see_the_same(client: redis.Redis) -> None:
    registry, other = Registry(client, "same"), Registry(client, "same")
    for node in ("b", "c@host", "a"):
        registry.register(registration(node))
    for seen in (registry, other):
        assert [record.id for record in seen.nodes()] == ["a", "b", "c@host"]
    other.drain("b")
    assert [record.draining for record in registry.nodes()] == [False, True, False]


def test_a_node_stays_as_long_as_it_beats(registry: Registry, session: str) -> None:
    registry.register(registration("b"))
    registry.clock_offset_ms += REMOVED_MS - 15_000
    registry.beat("a", session, pb.NodeState())
    registry.clock_offset_ms += 15_000
    assert only(registry).id == "a"


@pytest.mark.parametrize("how", ["silent", "left", "all data lost"])
def test_a_node_that_is_gone_registers_again(how: str, registry: Registry, session: str, client: redis.Redis) -> None:
    if how == "silent":
        registry.clock_offset_ms += REMOVED_MS
    elif how == "left":
        registry.leave("a", session)
    else:
        client.flushall()
    assert registry.nodes() == []
    with pytest.raises(NotFoundError, match=r"'a'.* 30 s: register again"):
        registry.beat("a", session, pb.NodeState())
    with pytest.raises(NotFoundError, match="'a'"):
        registry.leave("a", session)
    assert registry.register(registration()) != session
    assert only(registry).id == "a"


def test_no_clock_but_that_of_redis_matters(registry: Registry, session: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for offset_s in (3_600.0, -3_600.0):
        wrong = time.time() + offset_s
        monkeypatch.setattr(time, "time", lambda wrong=wrong: wrong)
        registry.beat("a", session, pb.NodeState(ready=True))
        assert only(registry).age_s < REMOVED_S


def test_draining_stays_when_the_node_registers_again_and_ends_on_request(registry: Registry) -> None:
    registry.register(registration())
    registry.drain("a")
    registry.register(registration(address="127.0.0.1:7002"))
    assert only(registry).draining
    registry.drain("a", False)
    assert not only(registry).draining
    with pytest.raises(NotFoundError, match="'nobody'"):
        registry.drain("nobody")


def test_a_node_that_was_started_again_ends_the_session_before(registry: Registry) -> None:
    first = registry.register(registration())
    second = registry.register(registration(address="127.0.0.1:7002"))
    before = registry.nodes()
    for call in (lambda: registry.beat("a", first, pb.NodeState(ready=True)), lambda: registry.leave("a", first)):
        with pytest.raises(RefusedError, match="another process has registered"):
            call()
    after = registry.nodes()
    assert [(each.registration, each.state) for each in before] == [(each.registration, each.state) for each in after]
    registry.beat("a", second, pb.NodeState(ready=True))
    assert only(registry).state.ready


def test_a_session_outlives_a_repeated_registration_of_its_node_alone(registry: Registry, session: str) -> None:
    """A node whose answer was lost registers again while its first call is still carried out."""
    assert registry.register(registration()) == session
    registry.beat("a", session, pb.NodeState())
    registry.register(registration("b"))
    with pytest.raises(RefusedError, match="'b'"):
        registry.beat("b", session, pb.NodeState(ready=True))
    assert not any(record.state.ready for record in registry.nodes())


def test_a_name_is_its_owners_while_the_node_lives(registry: Registry) -> None:
    registry.register(registration(), owner="vm-1")
    for owner in ("vm-2", ""):
        with pytest.raises(RefusedError, match=r"'a' lives already, at 127\.0\.0\.1:7001"):
            registry.register(registration(), owner=owner)
    registry.clock_offset_ms += REMOVED_MS
    registry.register(registration(), owner="vm-2")
    with pytest.raises(RefusedError):
        registry.register(registration(), owner="vm-1")


def test_a_name_is_its_nodes_until_it_is_removed_or_left(registry: Registry, session: str) -> None:
    other = registration(identity="another")
    registry.clock_offset_ms += REMOVED_MS - 15_000
    with pytest.raises(RefusedError, match=r"give another name \(--name\), or end that one; a name is free 30 s after"):
        registry.register(other)
    registry.beat("a", session, pb.NodeState())
    registry.clock_offset_ms += REMOVED_MS
    taken = registry.register(other)
    with pytest.raises(RefusedError):
        registry.register(registration())
    registry.leave("a", taken)
    registry.register(registration())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"node": ""}, "node name ''"),
        ({"identity": ""}, "node 'a' has no identity"),
        ({"address": "unix-abstract:80"}, "is not understood"),
        ({"node": "a\n"}, "printable"),
        ({"node": "x" * 101}, "1 to 100"),
        ({"address": ""}, "address '' is not understood"),
        ({"address": "vm-1"}, "give HOST:PORT"),
        ({"type": "hole"}, "did you mean 'whole'"),
        ({"capabilities": pb.Capabilities(slots=0, tokens_per_s=1.0)}, "slots of a is 0"),
        ({"capabilities": pb.Capabilities(slots=1)}, "tokens_per_s of a is 0"),
        ({"capabilities": pb.Capabilities(slots=1, tokens_per_s=float("nan"))}, "tokens_per_s of a is nan"),
        ({"capabilities": pb.Capabilities(slots=1, tokens_per_s=1.0, model="x" * MOST_BYTES)}, "at most 65,536"),
    ],
)
def test_registrations_that_cannot_be(registry: Registry, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.register(registration(**fields))
    assert registry.nodes() == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (pb.NodeState(cpu_share=1.1), r"cpu_share is 1\.1"),
        (pb.NodeState(memory_share=-0.1), r"memory_share is -0\.1"),
        (pb.NodeState(cpu_share=float("nan")), "cpu_share is nan"),
        (pb.NodeState(trouble="x" * MOST_BYTES), "at most 65,536"),
    ],
)
def test_states_that_cannot_be(registry: Registry, session: str, state: pb.NodeState, message: str) -> None:
    with pytest.raises(InputError, match=message):
        registry.beat("a", session, state)


def test_a_lost_redis_is_an_error_before_the_node_asks_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert PATIENCE_S < CALL_S
    monkeypatch.setattr("qubic_lab.cluster.registry.PATIENCE_S", 0.1)
    with RedisServer(tmp_path / "redis") as server:
        connection = connect(server.url)
    with pytest.raises(QubicLabError, match=r"could not be reached for 0\.1 s"):
        Registry(connection).nodes()


def test_names_by_certificate() -> None:
    check_name("anything", frozenset())
    for node in ("vm-1", "gpu@vm-1", "a@b@vm-1"):
        check_name(node, frozenset({"vm-1", "10.0.0.1"}))
    for node in ("vm-2", "vm-1@vm-2", "vm-1@"):
        with pytest.raises(RefusedError, match="shows a certificate for vm-1"):
            check_name(node, frozenset({"vm-1"}))


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    """Files of two hosts; `test_channel` says that strangers cannot connect."""
    folder = tmp_path_factory.mktemp("tls")
    roles = ("coordinator", "node")
    made = make_certificates(folder, [["vm-1", LOOPBACK], ["vm-2", LOOPBACK]], datetime.now(UTC), roles=roles)
    return {path.stem: TlsFiles(path, path.with_suffix(".key"), folder / "authority.pem") for path in made}


@pytest.fixture
async def stub_as(registry: Registry, hosts: Hosts, no_tls: None) -> AsyncIterator[MakeStub]:
    """Serve the registry; yield a function that makes a stub of the service, with the files of a host."""
    server = grpc.aio.server(options=SERVER_OPTIONS, interceptors=[MemberGuard()])
    service = RegistryService(registry, asyncio.to_thread, lambda: None)
    add_service(server, REGISTRY_SERVICE, service)
    address = f"{LOOPBACK}:{listen_as('coordinator', server, f'{LOOPBACK}:0', hosts['vm-2'])}"
    await server.start()
    channels = []

    def stub(files: TlsFiles) -> Any:
        channels.append(open_async_channel(address, files))
        return stub_of(channels[-1], REGISTRY_SERVICE)

    yield stub
    for channel in channels:
        await channel.close()
    await server.stop(grace=None)


async def status(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


@pytest.mark.anyio
async def test_hosts_speak_for_themselves_alone(registry: Registry, hosts: Hosts, stub_as: MakeStub) -> None:
    one, two = stub_as(hosts["vm-1"]), stub_as(hosts["vm-2"])
    registered = await one.Register(registration("gpu@vm-1"))
    assert registered.beat_every_s == 5.0
    session = registered.session
    beat = pb.Heartbeat(node="gpu@vm-1", session=session, state=pb.NodeState(ready=True))
    leave = pb.LeaveRequest(node="gpu@vm-1", session=session)
    for call in (two.Register(registration("gpu@vm-1")), two.Beat(beat), two.Leave(leave)):
        assert await status(call) is grpc.StatusCode.PERMISSION_DENIED
    assert not only(registry).state.ready
    # A name that stands in both certificates is the first one's, while that lives.
    await one.Register(registration(LOOPBACK))
    assert await status(two.Register(registration(LOOPBACK))) is grpc.StatusCode.PERMISSION_DENIED
    await one.Beat(beat)
    assert next(record for record in registry.nodes() if record.id == "gpu@vm-1").state.ready


@pytest.mark.anyio
async def test_what_a_node_is_told(registry: Registry, hosts: Hosts, stub_as: MakeStub) -> None:
    one = stub_as(hosts["vm-1"])
    unknown = pb.Heartbeat(node="vm-1", session="none")
    assert await status(one.Beat(unknown)) is grpc.StatusCode.NOT_FOUND
    assert await status(one.Register(registration("vm-1", type="hole"))) is grpc.StatusCode.INVALID_ARGUMENT
    await one.Register(registration("vm-1"))
    assert await status(one.Beat(unknown)) is grpc.StatusCode.PERMISSION_DENIED
