"""Opens many connections to one address and holds them: silent ones, halves of headers, and halves of bodies.

`python flood.py HOST PORT COUNT` prints "held" when all have been opened, and ends with its standard input.
"""

import asyncio
import resource
import sys

HALVES = (
    b"",
    b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"POST /api/ai/query HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
    b"\x16\x03\x01\x02\x00",  # of a TLS handshake
)
AT_ONCE = 200


async def hold(host: str, port: int, half: bytes, opening: asyncio.Semaphore, tried: list[bytes]) -> None:
    """Open a connection, send a half, note that, and wait for its end."""
    try:
        async with opening:
            try:
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(half)
            finally:
                tried.append(half)
        await reader.read()
        writer.close()
    except OSError:
        pass  # cut off


async def main() -> None:
    host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    opening = asyncio.Semaphore(AT_ONCE)
    tried: list[bytes] = []
    holding = [asyncio.ensure_future(hold(host, port, HALVES[n % len(HALVES)], opening, tried)) for n in range(count)]
    while len(tried) < count:
        await asyncio.sleep(0.1)
    print("held", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    for each in holding:
        each.cancel()


if __name__ == "__main__":
    asyncio.run(main())
