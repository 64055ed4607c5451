"""gRPC between simulated processes: channels and servers with the methods of `grpc.aio` that the project uses.

Messages are serialized. Statuses are gRPC's: UNAVAILABLE where nobody answers or the connection breaks,
DEADLINE_EXCEEDED after a call's timeout, CANCELLED by a server that ends, UNKNOWN where a handler fails.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio

from qubic_lab.simulation.loop import Process
from qubic_lab.simulation.network import Connection, Network

State = grpc.ChannelConnectivity
AGAIN_S = 1.0
"""A channel that found nobody tries again after this time."""
_NOTHING = grpc.aio.Metadata()


class Channel:
    """A channel of one process to an address; it connects when it is first used."""

    def __init__(self, network: Network, process: Process, address: str) -> None:
        self._network, self._process, self._address = network, process, address
        self._state = State.IDLE
        self._connection: Connection | None = None
        self._waiting: list[asyncio.Future[None]] = []
        self._calls: dict[Call, None] = {}

    def get_state(self, try_to_connect: bool = False) -> State:
        """Return the state, and connect if asked to."""
        if try_to_connect and self._state is State.IDLE:
            self._connect()
        return self._state

    async def wait_for_state_change(self, last_observed_state: State) -> None:
        """Wait until the state is another."""
        while self._state is last_observed_state:
            future = self._process.create_future()
            self._waiting.append(future)
            await future

    def unary_unary(
        self, method: str, request_serializer: Any = None, response_deserializer: Any = None, **_: Any
    ) -> Callable[..., "Call"]:
        """Return what calls a method that has one answer."""
        return partial(self._call, method, request_serializer, response_deserializer)

    unary_stream = unary_unary

    async def close(self, grace: float | None = None) -> None:
        """End it and its calls."""
        if self._state is State.SHUTDOWN:
            return
        for call in list(self._calls):
            call.cancel()
        if self._connection is not None:
            self._connection.close(self._process)
        self._change(State.SHUTDOWN)

    def _call(
        self,
        method: str,
        serialize: Any,
        deserialize: Any,
        request: Any,
        *,
        timeout: float | None = None,
        metadata: Any = (),
    ) -> "Call":
        if self._state is State.SHUTDOWN:
            raise grpc.aio.UsageError("Channel is closed.")
        call = Call(self, method, serialize(request), deserialize, tuple(metadata or ()), timeout)
        self._calls[call] = None
        if self._state is State.READY:
            call.send()
        elif self._state is State.TRANSIENT_FAILURE:
            self._process.call_soon(call.end, grpc.StatusCode.UNAVAILABLE, f"nothing answers at {self._address}")
        elif self._state is State.IDLE:
            self._connect()
        return call

    def _connect(self) -> None:
        self._change(State.CONNECTING)
        self._network.connect(self._process, self._address, self._connected)

    def _connected(self, connection: Connection | None) -> None:
        if self._state is not State.CONNECTING:
            if connection is not None:
                connection.close(self._process)
            return
        if connection is None:
            self._change(State.TRANSIENT_FAILURE)
            self._fail(f"nothing answers at {self._address}")
            self._process.call_later(AGAIN_S, self._try_again)
            return
        self._connection = connection
        connection.on_lost[self._process] = self._lost
        self._change(State.READY)
        for call in list(self._calls):
            call.send()

    def _try_again(self) -> None:
        if self._state is State.TRANSIENT_FAILURE:
            self._change(State.IDLE)

    def _lost(self) -> None:
        self._connection = None
        if self._state is not State.SHUTDOWN:
            self._change(State.IDLE)
        self._fail(f"the connection to {self._address} broke")

    def _fail(self, why: str) -> None:
        for call in list(self._calls):
            call.end(grpc.StatusCode.UNAVAILABLE, why)

    def _change(self, state: State) -> None:
        self._state = state
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)


class Call:
    """A call as its caller sees it: awaited for one answer, or iterated."""

    def __init__(
        self, channel: Channel, method: str, request: bytes, deserialize: Any, metadata: Any, timeout: float | None
    ) -> None:
        self.method, self.request, self.metadata = method, request, metadata
        self.process: Process = channel._process
        self._channel, self._deserialize = channel, deserialize
        self._connection: Connection | None = None
        self._messages: deque[bytes] = deque()
        self._news: asyncio.Future[None] | None = None
        self._status: tuple[grpc.StatusCode, str] | None = None
        self._timer = None if timeout is None else self.process.call_later(timeout, self._too_late)

    def send(self) -> None:
        """Send the request over the channel's connection."""
        self._connection = self._channel._connection
        assert self._connection is not None
        self._connection.send(self.process, self._connection.accepted_by.serve, self, self._connection)

    def end(self, code: grpc.StatusCode, details: str) -> None:
        """Note the status."""
        if self._status is None:
            self._status = code, details
            self._channel._calls.pop(self, None)
            if self._timer is not None:
                self._timer.cancel()
            self._wake()

    def got(self, message: bytes) -> None:
        """Note a message of the server."""
        self._messages.append(message)
        self._wake()

    def cancel(self) -> bool:
        """End it from here."""
        return self._leave(grpc.StatusCode.CANCELLED, "Locally cancelled by application!")

    def done(self) -> bool:
        """Return whether it has ended."""
        return self._status is not None

    def __await__(self) -> Generator[Any, None, Any]:
        return self._answer().__await__()

    async def __aiter__(self) -> AsyncGenerator[Any, None]:
        while True:
            while self._messages:
                yield self._deserialize(self._messages.popleft())
            if self._status is not None:
                self._check()
                return
            await self._wait()

    async def _answer(self) -> Any:
        while self._status is None:
            await self._wait()
        self._check()
        return self._deserialize(self._messages.popleft())

    async def _wait(self) -> None:
        self._news = self.process.create_future()
        try:
            await self._news
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _check(self) -> None:
        assert self._status is not None
        code, details = self._status
        if code is grpc.StatusCode.CANCELLED and details.startswith("Locally"):
            raise asyncio.CancelledError
        if code is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(code, _NOTHING, _NOTHING, details=details)

    def _too_late(self) -> None:
        self._leave(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded")

    def _leave(self, code: grpc.StatusCode, details: str) -> bool:
        if self._status is not None:
            return False
        if self._connection is not None:
            self._connection.send(self.process, self._connection.accepted_by.cancel, self)
        self.end(code, details)
        return True


class Server:
    """A server of one process."""

    def __init__(self, network: Network, process: Process, interceptors: Sequence[Any] = ()) -> None:
        self._network, self.process, self._interceptors = network, process, interceptors
        self._handlers: list[Any] = []
        self._served: dict[Call, Served] = {}
        self._connections: dict[Connection, None] = {}
        self._addresses: list[str] = []
        self._accepts = False

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Let it answer methods."""
        self._handlers += handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: Any) -> None:
        """Do nothing: the methods are added as generic ones, too."""

    def add_insecure_port(self, address: str) -> int:
        """Listen at an address and return the port."""
        port = self._network.listen(self.process, address, self._accept)
        self._addresses.append(f"{address.rpartition(':')[0]}:{port}")
        return port

    async def start(self) -> None:
        """Accept calls."""
        self._accepts = True

    async def stop(self, grace: float | None) -> None:
        """Refuse new calls, wait for those that run, and cancel them after `grace` seconds."""
        self._accepts = False
        for address in self._addresses:
            self._network.listeners.pop(address, None)
        running = [served.task for served in self._served.values()]
        if running and grace:
            await asyncio.wait(running, timeout=grace)
        for served in list(self._served.values()):
            served.end(grpc.StatusCode.CANCELLED, "CANCELLED")
            served.task.cancel()
        if running:
            await asyncio.wait(running)
        for connection in list(self._connections):
            connection.close(self.process)

    def serve(self, call: Call, connection: Connection) -> None:
        """Begin to answer a call."""
        if not self._accepts:
            connection.send(self.process, call.end, grpc.StatusCode.UNAVAILABLE, "the server ends")
            return
        self._served[call] = Served(self, call, connection)

    def cancel(self, call: Call) -> None:
        """End the work on a call that nobody wants any more."""
        if (served := self._served.get(call)) is not None:
            served.task.cancel()

    def _accept(self, connection: Connection) -> None:
        self._connections[connection] = None
        connection.accepted_by = self
        connection.on_lost[self.process] = partial(self._lost, connection)

    def _lost(self, connection: Connection) -> None:
        self._connections.pop(connection, None)
        for served in list(self._served.values()):
            if served.connection is connection:
                served.task.cancel()

    async def handler(self, call: Call) -> Any:
        """Return the handler of a call's method, behind the interceptors."""
        details = SimpleNamespace(method=call.method, invocation_metadata=call.metadata)

        async def find(details: Any) -> Any:
            for each in self._handlers:
                if (found := each.service(details)) is not None:
                    return found
            return None

        continuation: Any = find
        for interceptor in reversed(self._interceptors):
            continuation = partial(interceptor.intercept_service, continuation)
        return await continuation(details)


class Served:
    """A call as its handler sees it: the context of `grpc.aio`."""

    def __init__(self, server: Server, call: Call, connection: Connection) -> None:
        self.connection = connection
        self._server, self._call = server, call
        self._serialize: Any = None
        self._ended = False
        self.task = asyncio.Task(self._run(), loop=server.process)

    async def write(self, message: Any) -> None:
        """Send a message."""
        self.connection.send(self._server.process, self._call.got, self._serialize(message))

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> None:
        """End with a status, by an error."""
        self.end(code, details)
        raise grpc.aio.AbortError("Locally aborted.")

    def invocation_metadata(self) -> Any:
        """Return what came with the request."""
        return self._call.metadata

    def auth_context(self) -> dict[str, Any]:
        """Return nothing: a simulated member has no certificate."""
        return {}

    def end(self, code: grpc.StatusCode, details: str = "") -> None:
        """Send the status."""
        if not self._ended:
            self._ended = True
            self.connection.send(self._server.process, self._call.end, code, details)

    async def _run(self) -> None:
        try:
            handler = await self._server.handler(self._call)
            if handler is None:
                self.end(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
                return
            self._serialize = handler.response_serializer
            request = handler.request_deserializer(self._call.request)
            answer = handler.unary_stream if handler.response_streaming else handler.unary_unary
            found = await answer(request, self)
            if found is not None:
                await self.write(found)
            self.end(grpc.StatusCode.OK)
        except asyncio.CancelledError:
            self.end(grpc.StatusCode.CANCELLED, "CANCELLED")
        except grpc.aio.AbortError:
            pass
        except Exception as error:
            self.end(grpc.StatusCode.UNKNOWN, f"Unexpected {type(error)}: {error}")
            self._server.process.call_exception_handler({"message": f"{self._call.method} failed", "exception": error})
        finally:
            self._server._served.pop(self._call, None)
