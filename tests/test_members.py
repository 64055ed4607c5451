"""Attacks on a cluster's members by processes of the same host and by holders of other certificates, over real gRPC."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import redis
from clusters import Fragile, until
from commands import Run
from test_registry import registration, status

from qubic_lab.cluster.calls import Channels
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.identity import claimed_name
from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.errors import InputError, QubicLabError, RefusedError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2
from qubic_lab.wire.certificates import make_certificates
from qubic_lab.wire.channel import CLIENT_OPTIONS, SERVER_OPTIONS, TlsFiles, listen, open_async_channel, open_channel
from qubic_lab.wire.members import _CALLERS, LEAST_CHARACTERS, open_member_channel
from qubic_lab.wire.services import NODE_SERVICE, REGISTRY_SERVICE, add_service, stub_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("hurried", "no_tls")]
TOKEN = "a secret of all members, and of nobody else"
HOST = "127.0.0.1"
DENIED, INVALID = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
SetSettings = Callable[..., None]
PROMPT = pipeline_pb2.GenerateRequest(prompt="hi", sampling=pipeline_pb2.Sampling(max_new_tokens=4, top_p=1.0))


@dataclass
class Members:
    """A coordinator and an honest node "a@localhost" at ports of loopback."""

    coordinator: Coordinator
    node: "asyncio.Task[None]"
    replica: Fragile

    @property
    def registry(self) -> str:
        return f"{HOST}:{self.coordinator.port}"

    @property
    def address(self) -> str:
        [view] = self.coordinator.nodes()
        return view.record.registration.address

    async def assert_unharmed(self) -> None:
        """The honest node is the only one, lives on, and answers."""
        asked = self.replica.asked
        task_id = await self.coordinator.submit(PROMPT)
        outcome = await until(lambda: self.coordinator.call(self.coordinator.queue.result, task_id))
        assert (outcome.state, outcome.attempts, self.replica.asked) == ("completed", 1, asked + 1)
        assert [view.record.id for view in self.coordinator.nodes()] == ["a@localhost"]
        assert not self.node.done()


@asynccontextmanager
async def members(client: redis.Redis, coordinators: Sequence[str] = ()) -> AsyncIterator[Members]:
    """Run both; the node tries `coordinators` first."""
    client.flushall()
    replica = Fragile()
    async with Coordinator(client, f"{HOST}:0").running() as coordinator:
        node = Node(NodeConfig("a@localhost", (*coordinators, f"{HOST}:{coordinator.port}"), f"{HOST}:0"), replica)
        running = asyncio.ensure_future(node.run())
        try:
            await until(lambda: running.done() or [view.gate for view in coordinator.nodes()] == [None])
            yield Members(coordinator, running, replica)
        finally:
            node.end()
            await running


@pytest.fixture
def token(set_settings: SetSettings, tmp_path: Path) -> None:
    """HTTP clients and members need tokens."""
    set_settings(node_token=TOKEN, api_tokens=tmp_path / "tokens.yaml")


def stranger(address: str) -> grpc.aio.Channel:
    """A channel of a process that knows no token."""
    return grpc.aio.insecure_channel(address, options=CLIENT_OPTIONS)


async def run_directly(channel: grpc.aio.Channel) -> list[pb.TaskResponse]:
    call = stub_of(channel, NODE_SERVICE).Run(pb.TaskRequest(task="t", coordinator="c", request=PROMPT))
    return [response async for response in call]


@pytest.mark.usefixtures("token")
async def test_a_process_without_the_token_neither_registers_nor_asks(client: redis.Redis) -> None:
    async with members(client) as honest, stranger(honest.registry) as one, stranger(honest.address) as other:
        registry, node = stub_of(one, REGISTRY_SERVICE), stub_of(other, NODE_SERVICE)
        links = pb.LinksRequest(addresses={"b": honest.registry})
        for call in (
            registry.Register(registration("forged")),
            registry.Register(registration("a@localhost")),
            registry.Beat(pb.Heartbeat(node="a@localhost")),
            registry.Leave(pb.LeaveRequest(node="a@localhost")),
            run_directly(other),
            node.MeasureLinks(links),
            node.Echo(pb.Payload()),
        ):
            assert await status(call) is DENIED
        assert honest.replica.asked == 0
        await honest.assert_unharmed()


@pytest.mark.usefixtures("token")
async def test_a_node_with_another_token_says_so_before_its_model_is_loaded(
    client: redis.Redis, set_settings: SetSettings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = Fragile()
    monkeypatch.setattr(replica, "start", asyncio.Future)  # loads for ever
    async with Coordinator(client, f"{HOST}:0").running() as coordinator:
        set_settings(node_token=f"another {TOKEN}")
        node = Node(NodeConfig("a@localhost", (f"{HOST}:{coordinator.port}",), f"{HOST}:0"), replica)
        running = asyncio.ensure_future(node.run())
        await until(lambda: "does not prove the node token" in caplog.text or running.done())
        node.end()
        await running


@dataclass
class Impostor:
    """Takes whatever comes, answers as if it were a member, and keeps what it was shown."""

    calls: list[tuple[Any, list[tuple[str, Any]]]] = field(default_factory=list)
    relay: grpc.aio.Channel | None = None

    async def Register(self, request: Any, context: Any) -> pb.Registered:
        self._keep(request, context)
        return pb.Registered(session="forged", beat_every_s=0.1)

    async def Run(self, request: Any, context: Any) -> AsyncGenerator[pb.TaskResponse, None]:
        self._keep(request, context)
        end = pipeline_pb2.End(text="forged", finish_reason="stop")
        yield pb.TaskResponse(reply=pipeline_pb2.GenerateReply(end=end))
        yield pb.TaskResponse(done=pb.Done(node_ms=1.0))

    async def Echo(self, request: Any, context: Any) -> Any:
        self._keep(request, context)
        if self.relay is not None:
            call = stub_of(self.relay, NODE_SERVICE).Echo(request, metadata=self.calls[-1][1])
            await context.send_initial_metadata(await call.initial_metadata())
            return await call
        return request

    def _keep(self, request: Any, context: Any) -> None:
        shown = [(key, value) for key, value in context.invocation_metadata() if key.startswith("qubic-lab")]
        self.calls.append((request, shown))


@asynccontextmanager
async def impostor(tls: TlsFiles | None = None) -> AsyncIterator[tuple[str, Impostor]]:
    server, service = grpc.aio.server(options=SERVER_OPTIONS), Impostor()
    add_service(server, REGISTRY_SERVICE, service)
    add_service(server, NODE_SERVICE, service)
    address = f"{HOST}:{listen(server, f'{HOST}:0', tls)}"
    await server.start()
    yield address, service
    await server.stop(grace=None)


@pytest.mark.usefixtures("token")
async def test_a_process_at_the_port_of_a_coordinator_learns_nothing_that_it_can_use(client: redis.Redis) -> None:
    async with impostor() as (address, forged), members(client, [address]) as honest:
        await honest.assert_unharmed()  # it went on to the next coordinator
        [(request, shown), *_] = forged.calls
        assert TOKEN not in str(shown)
        request.address = address  # else it is the registration of the honest node once more
        async with stranger(honest.registry) as channel:
            registry = stub_of(channel, REGISTRY_SERVICE)
            assert await status(registry.Register(request, metadata=shown)) is DENIED
            leave = pb.LeaveRequest(node="a@localhost")
            assert await status(registry.Leave(leave, metadata=shown)) is DENIED
        await honest.assert_unharmed()


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("relayed", [False, True])
async def test_a_process_at_the_port_of_a_node_reads_no_prompt(relayed: bool, client: redis.Redis) -> None:
    async with impostor() as (address, forged), members(client) as honest, stranger(honest.address) as real:
        forged.relay = real if relayed else None
        channels = Channels()
        with pytest.raises(QubicLabError, match="does not prove the node token"):
            await channels.ready(address)
        assert await channels.ready(honest.address)
        await channels.close()
        dead = registration("dead", address=address)
        registry = honest.coordinator.registry
        session = await honest.coordinator.call(registry.register, dead)
        await honest.coordinator.call(registry.beat, "dead", session, pb.NodeState(ready=True))
        await until(lambda: len(honest.coordinator.nodes()) == 2)
        task_id = await honest.coordinator.submit(PROMPT, node="dead")
        await until(lambda: len(forged.calls) >= 2)
        await honest.coordinator.cancel(task_id)
        assert not any(isinstance(request, pb.TaskRequest) for request, _ in forged.calls)
        async with open_member_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await run_directly(channel)
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_without_tokens_a_name_is_its_nodes_while_it_lives(client: redis.Redis) -> None:
    async with members(client) as honest:
        async with stranger(honest.registry) as channel:
            registry = stub_of(channel, REGISTRY_SERVICE)
            for address in (honest.address, "127.0.0.1:7001"):
                thief = registration("a@localhost", address=address, identity="another")
                assert await status(registry.Register(thief)) is DENIED
        second = Node(NodeConfig("a@localhost", (honest.registry,)), Fragile())
        with pytest.raises(RefusedError, match=rf"lives already, at {honest.address}.*give another name \(--name\)"):
            await asyncio.wait_for(second.run(), 60.0)
        await honest.assert_unharmed()


@pytest.mark.parametrize(
    "address",
    ["unix:/run/docker.sock", "unix:///run/docker.sock", "unix:FOLDER/../docker.sock", "unix:FOLDER/%2e%2e/docker.sock",
     "unix:FOLDER/deeper/a.sock", "unix:FOLDER/link.sock", "unix:FOLDER/%00.sock", "unix:docker.sock",
     "unix-abstract:80", "unix-abstract:docker", "dns:///vm-1:80", "dns:80", "vsock:3:80", "ipv4:127.0.0.1:80",
     "http://127.0.0.1:80"],
)  # fmt: skip
async def test_no_socket_but_those_of_the_cluster_is_an_address(
    address: str, client: redis.Redis, tmp_path: Path
) -> None:
    client.flushall()
    (tmp_path / "link.sock").symlink_to("/run/docker.sock")
    listening = f"unix:{tmp_path}/coordinator.sock"
    async with Coordinator(client, listening).running() as coordinator, stranger(listening) as channel:
        registry = stub_of(channel, REGISTRY_SERVICE)
        wrong = registration(address=address.replace("FOLDER", str(tmp_path)))
        assert await status(registry.Register(wrong)) is INVALID
        assert await coordinator.call(coordinator.registry.nodes) == []
        await registry.Register(registration(address=f"unix:{tmp_path}/node.sock"))


async def test_a_coordinator_at_a_port_takes_ports_of_its_host_only(client: redis.Redis, tmp_path: Path) -> None:
    async with members(client) as honest, stranger(honest.registry) as channel:
        registry = stub_of(channel, REGISTRY_SERVICE)
        for address, code in ((f"unix:{tmp_path}/node.sock", INVALID), ("10.0.0.9:80", DENIED)):
            assert await status(registry.Register(registration("b", address=address))) is code
        await honest.assert_unharmed()


Files = dict[str, TlsFiles]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Files of members and of others, by their roles."""
    folder, now = tmp_path_factory.mktemp("tls"), datetime.now(UTC)
    made = {}
    for roles in (("coordinator", "node"), ("node",), ("client",), ()):
        name = "-".join(roles) or "old"
        [path] = make_certificates(folder, [[name, "localhost", HOST]], now, roles=roles)
        made[name] = TlsFiles(path, path.with_suffix(".key"), folder / "authority.pem")
    return made


def use(files: TlsFiles, set_settings: SetSettings) -> None:
    set_settings(**{f"tls_{name}": getattr(files, name) for name in ("certificate", "key", "authority")})


@pytest.mark.parametrize(("who", "said"), [("client", "has the role client"), ("old", "has no role")])
async def test_a_certificate_without_the_role_neither_registers_nor_asks(
    who: str, said: str, client: redis.Redis, files: Files, set_settings: SetSettings
) -> None:
    use(files["coordinator-node"], set_settings)
    async with (
        members(client) as honest,
        open_async_channel(honest.registry, files[who]) as one,
        open_async_channel(honest.address, files[who]) as other,
    ):
        registry = stub_of(one, REGISTRY_SERVICE)
        wrong = registration(who, address="unix:/run/docker.sock")
        for call, role in ((registry.Register(wrong), "node"), (run_directly(other), "coordinator")):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() is DENIED
            details = caught.value.details()
            assert said in details and f"qubic-lab certs renew FOLDER NAME --role {role}" in details
        assert await status(registry.Register(registration(who))) is DENIED
        await honest.assert_unharmed()


async def test_a_nodes_certificate_registers_its_own_addresses_and_asks_for_measurements_alone(
    client: redis.Redis, files: Files, set_settings: SetSettings
) -> None:
    use(files["coordinator-node"], set_settings)
    async with (
        members(client) as honest,
        open_async_channel(honest.registry, files["node"]) as one,
        open_async_channel(honest.address, files["node"]) as other,
    ):
        registry = stub_of(one, REGISTRY_SERVICE)
        for address, code in (("unix:/run/docker.sock", INVALID), ("vm-9:7001", DENIED), ("10.0.0.9:7001", DENIED)):
            assert await status(registry.Register(registration("node", address=address))) is code
        assert await status(run_directly(other)) is DENIED
        assert (await stub_of(other, NODE_SERVICE).OpenMeter(pb.MeterRequest())).port
        await honest.assert_unharmed()
        await registry.Register(registration("node", address="localhost:7001"))


def test_each_method_has_callers() -> None:
    services = (REGISTRY_SERVICE, NODE_SERVICE)
    methods = {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}
    assert methods == _CALLERS.keys()


async def test_a_certificate_of_a_client_serves_nobody(
    client: redis.Redis, files: Files, set_settings: SetSettings
) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    with pytest.raises(InputError, match="client's certificate and cannot serve"):
        listen(server, f"{HOST}:0", files["client"])
    port = server.add_secure_port(f"{HOST}:0", files["client"].for_server())
    await server.start()
    with open_channel(f"{HOST}:{port}", files["node"]) as channel:
        call = asyncio.to_thread(channel.unary_unary("/test/Echo"), b"", timeout=60.0)
        with pytest.raises(grpc.RpcError, match="unsupported certificate purpose"):
            await call
    await server.stop(grace=None)
    for name in ("old", "node"):
        use(files[name], set_settings)
        with pytest.raises(
            InputError, match="this is for a coordinator: give it that role with `qubic-lab certs renew"
        ):
            async with Coordinator(client, f"{HOST}:0").running():
                pass


async def test_http_tokens_on_loopback_need_a_node_token_unless_sockets_are_private(
    client: redis.Redis, set_settings: SetSettings, tmp_path: Path, here: Run
) -> None:
    set_settings(api_tokens=tmp_path / "tokens.yaml", node_token=None)
    with pytest.raises(InputError, match=r"any process of this host could call .*set QUBIC_LAB_NODE_TOKEN"):
        async with Coordinator(client, f"{HOST}:0").running():
            pass
    async with Coordinator(client, f"unix:{tmp_path}/coordinator.sock").running():
        pass
    set_settings(node_token="x" * (LEAST_CHARACTERS - 1))
    with pytest.raises(InputError, match=r"has 31 characters.*`qubic-lab token new`"):
        async with Coordinator(client, f"{HOST}:0").running():
            pass
    set_settings(node_token=here("token new").out.strip())
    async with members(client) as honest:
        await honest.assert_unharmed()


def test_names_of_a_host_are_unique_at_a_cluster(
    set_settings: SetSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_settings(cache=tmp_path)
    monkeypatch.setattr("socket.gethostname", lambda: "vm-1")
    here, there = ["127.0.0.1:5001"], ["127.0.0.1:6001"]
    for _ in range(2):
        with claimed_name(here) as first, claimed_name(here) as second, claimed_name(there) as elsewhere:
            assert [name for name, _ in (first, second, elsewhere)] == ["vm-1", "2@vm-1", "vm-1"]
            with claimed_name(here, "vm-1") as given, claimed_name(here, "ä/" * 50) as strange:
                assert [name for name, _ in (given, strange)] == ["vm-1", "ä/" * 50]
                assert len({identity for _, identity in (first, second, elsewhere, given, strange)}) == 5
            kept = [path for path in (tmp_path / "nodes").rglob("*") if path.is_file()]
            assert len(kept) == 3 and all(path.stat().st_mode & 0o777 == 0o600 for path in kept)
        assert not list((tmp_path / "nodes").iterdir())


def test_a_node_that_was_killed_is_known_again(set_settings: SetSettings, tmp_path: Path) -> None:
    set_settings(cache=tmp_path)
    code = (
        "from qubic_lab.cluster.identity import *\nwith claimed_name(['x'], 'a') as a: print(a[1], flush=True), input()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        identity = process.stdout.readline().strip()
        with claimed_name(["x"], "a") as beside:
            assert beside[1] != identity
        process.kill()
        process.wait()
    with claimed_name(["x"], "a") as again:
        assert again == ("a", identity)
