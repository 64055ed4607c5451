"""Connections to nodes."""

import asyncio
from collections.abc import Container

import grpc
import grpc.aio

from qubic_lab.errors import QubicLabError
from qubic_lab.wire.channel import open_async_channel

CONNECT_S = 3.0


class Channels:
    """Connections to nodes by their addresses; each is made when it is first needed, and again when it has broken."""

    def __init__(self) -> None:
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def ready(self, address: str) -> grpc.aio.Channel:
        """Return a connection that stands: whoever calls over it knows that the node may have got the call.

        The caller holds it while the call runs.

        Raises:
            QubicLabError: nobody answers there.
            InputError: as `open_async_channel`.
        """
        if address not in self._channels:
            self._channels[address] = open_async_channel(address)
        channel = self._channels[address]
        try:
            async with asyncio.timeout(CONNECT_S):
                while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        raise TimeoutError
                    await channel.wait_for_state_change(state)
        except TimeoutError:
            # gRPC would wait longer and longer before it tries again, and goes by the certificates that it began with.
            if self._channels.get(address) is channel:
                del self._channels[address]
            raise QubicLabError(f"nobody answers at {address}") from None
        return channel

    def keep(self, addresses: Container[str]) -> None:
        """Forget the others; a connection closes when its last call has ended."""
        self._channels = {address: channel for address, channel in self._channels.items() if address in addresses}

    async def close(self) -> None:
        """Close all."""
        for channel in self._channels.values():
            await channel.close()
