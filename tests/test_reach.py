"""Where clients of sources connect: never from a public source to this host or a private network, whatever its name."""

import asyncio
from collections.abc import Sequence

import pytest
from sqlalchemy import Engine

from qubic_lab.oracle.ingest.collector_config import SourceConfig
from qubic_lab.oracle.ingest.http_source import SourceClient, SourceError
from qubic_lab.oracle.ingest.reach import InsideError, Reach, place_of


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("93.184.216.34", "public"),
        ("2606:2800:220:1::1", "public"),
        ("127.0.0.1", "this host"),
        ("127.8.8.8", "this host"),
        ("0.0.0.0", "this host"),
        ("::", "this host"),
        ("::1", "this host"),
        ("::ffff:127.0.0.1", "this host"),
        ("::127.0.0.1", "this host"),
        ("64:ff9b::7f00:1", "this host"),
        ("2002:7f00:1::", "this host"),
        ("169.254.169.254", "link-local"),
        ("::ffff:169.254.169.254", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("10.0.0.2", "private"),
        ("::ffff:10.0.0.2", "private"),
        ("172.16.0.1", "private"),
        ("192.168.1.1", "private"),
        ("100.64.0.1", "private"),
        ("fd00::1", "private"),
        ("224.0.0.1", "private"),
    ],
)
def test_the_place_of_an_address_is_known_in_each_spelling(address: str, place: str) -> None:
    assert place_of(address) == place


class Names:
    """Names that resolve as a test says, the last answer for ever; `asked` has each look-up."""

    def __init__(self, **answers: Sequence[str]) -> None:
        self.answers = {name.replace("_", "."): list(each) for name, each in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        found = self.answers.get(host, [host])
        return [found.pop(0) if len(found) > 1 else found[0]]


def test_a_name_that_stands_for_another_address_a_moment_later_is_refused() -> None:
    names = Names(feed_example=["93.184.216.34", "127.0.0.1"])

    async def connect() -> None:
        reach = Reach("feed.example", names)
        assert await reach.checked("feed.example") == ["93.184.216.34"]
        with pytest.raises(InsideError, match=r"leads to feed\.example, which is this host"):
            await reach.connect_tcp("feed.example", 80)

    asyncio.run(connect())


def test_a_source_is_connected_at_the_address_that_was_checked_and_leads_no_further(sqlite: Engine) -> None:
    names = Names(feed_example=["127.0.0.1"], inner_example=["10.0.0.2"], beside_example=["127.0.0.1"])
    moved = {"/in": "http://inner.example/", "/mapped": "http://[::ffff:169.254.169.254]/", "/own": "/"}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := (await reader.readuntil(b"\r\n\r\n")):
            path = line.split()[1].decode()
            if path == "/":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            else:
                head = f"HTTP/1.1 302 Found\r\nLocation: {moved[path]}\r\nContent-Length: 0\r\n\r\n"
                writer.write(head.encode())
            await writer.drain()

    async def ask() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        config = SourceConfig(f"http://feed.example:{port}", rate=1_000, burst=100)
        moved["/beside"] = f"http://beside.example:{port}/"
        async with SourceClient("feed", config, sqlite) as client:
            client._reach._resolve = names
            assert (await client.get("/")).body == {}
            assert names.asked == ["feed.example"]
            for path in ("/own", "/beside"):  # on this host, as the source itself
                assert (await client.get(path)).body == {}
            for path, host in (("/in", r"inner\.example"), ("/mapped", r"::ffff:")):
                with pytest.raises(SourceError, match=rf"leads to {host}.*, which is in a .* network") as caught:
                    await client.get(path)
                assert (caught.value.kind, caught.value.fetch.attempts) == ("refused", 1)
        server.close()

    asyncio.run(ask())
