"""Where a client may connect: no source leads it to this host or a private network.

A name is resolved once for each connection, its addresses are checked, and these same addresses are connected to: a
name that stands for another address a moment later (DNS rebinding) changes nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal

import httpcore2
import httpx2

Place = Literal["public", "this host", "link-local", "private"]
Resolve = Callable[[str], Awaitable[Sequence[str]]]
"""Returns the addresses of a host; an OSError if its name cannot be resolved."""
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class InsideError(httpx2.RequestError):
    """A host is this one, or one of a private network, and the source was not set up there."""


def place_of(address: str) -> Place:
    """Return where an IP address lies; one of IPv6 that carries one of IPv4 lies where that one does."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        carried = found.ipv4_mapped or found.sixtofour
        if carried is None and (found in _NAT64 or 1 < int(found) < 1 << 32):
            carried = ipaddress.IPv4Address(int(found) & 0xFFFF_FFFF)
        found = carried or found
    if found.is_loopback or found.is_unspecified:  # Linux connects 0.0.0.0 and :: to this host
        return "this host"
    if found.is_link_local:
        return "link-local"
    return "public" if found.is_global and not found.is_multicast else "private"


async def resolve(host: str) -> Sequence[str]:
    """Return the addresses of a host, as this machine resolves its name."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


class Reach(httpcore2.AsyncNetworkBackend):
    """Connects to public addresses, and to places where its `home`, the host that the user named, was at first."""

    def __init__(self, home: str, resolve: Resolve = resolve) -> None:
        self._home, self._resolve = home, resolve
        self._home_places: set[Place] | None = None
        self._network = httpcore2.AnyIOBackend()

    async def checked(self, host: str) -> Sequence[str]:
        """Return a host's addresses if all may be connected to.

        Raises:
            OSError: its name cannot be resolved.
            InsideError: it is inside, and home is not.
        """
        if self._home_places is None and host != self._home:
            with suppress(OSError):  # behind a proxy
                await self.checked(self._home)
        addresses = await self._resolve(host)
        places = {place_of(each) for each in addresses}
        if self._home_places is None and host == self._home:
            self._home_places = places
        if inside := places - {"public"} - (self._home_places or set()):
            where = "this host" if "this host" in inside else f"in a {min(inside)} network"
            raise InsideError(f"leads to {host}, which is {where}")
        return addresses

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Connect to one address after the other until one answers; what TLS checks is still the host's name."""
        try:
            addresses = await self.checked(host)
        except OSError as error:
            raise httpcore2.ConnectError(str(error)) from error
        last: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                last = error
        raise last

    def guard(self, client: httpx2.AsyncClient) -> None:
        """Make a new client's own connections; where a proxy is set, that one resolves names and connects."""
        transport = client._transport
        assert isinstance(transport, httpx2.AsyncHTTPTransport) and hasattr(transport._pool, "_network_backend")
        transport._pool._network_backend = self
