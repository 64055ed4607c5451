"""A node whose engine is replaced by a wait: the real process, registration and service around it.

`python -m qubic_lab.bench.echo_node --coordinator HOST:PORT --name NAME --seconds 1` answers with numbers that count up
from the request's seed, as many requests at the same time as it has slots; 16 tokens take a second, fewer less. What a
coordinator adds to a node's own time can be measured with it, and faults can be tried: a prompt with KILL in it ends
the process at once. It prints a line of JSON for each request that it begins (see `Begun`). Several names are several
nodes in one process, each with a service of its own.
"""

import argparse
import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import asdict, dataclass

from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

KILL = "[this ends the node]"
MODEL = "echo"


@dataclass(frozen=True)
class Begun:
    """That a node began a request: when (`time.monotonic`), and how many tokens of its answer were known."""

    node: str
    prompt: str
    known: int
    at_s: float


class EchoReplica:
    """Waits `token_s` seconds for each token in place of computing it; the tokens of an answer are `echo_tokens`."""

    def __init__(self, node: str, token_s: float, slots: int) -> None:
        self._node, self._token_s, self._slots = node, token_s, slots

    async def start(self) -> pb.Capabilities:
        """Tell what it can do; there is nothing to start."""
        return pb.Capabilities(
            model=MODEL, layers=[1], dtype="none", devices=["none"], slots=self._slots, tokens_per_s=1 / self._token_s
        )

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Give the tokens that are not given yet."""
        if KILL in request.prompt:
            os._exit(1)
        tokens = echo_tokens(request.sampling.seed, request.sampling.max_new_tokens)
        known, due_s = len(request.forced_token_ids), time.monotonic()
        print(json.dumps(asdict(Begun(self._node, request.prompt, known, due_s))), flush=True)
        for number in tokens[known:]:
            due_s += self._token_s
            await asyncio.sleep(due_s - time.monotonic())
            token = pipeline_pb2.Token(id=number, text=echo_text([number]))
            yield pipeline_pb2.GenerateReply(token=token)
        end = pipeline_pb2.End(text=echo_text(tokens), finish_reason="length", prompt_tokens=1)
        yield pipeline_pb2.GenerateReply(end=end)

    async def lost(self) -> QubicLabError:
        """Never return: nothing of it can be lost."""
        return await asyncio.Future()

    async def stop(self) -> None:
        """Do nothing: there is nothing to end."""


def echo_tokens(seed: int, count: int) -> range:
    """Return the token ids of an answer: no two requests with seeds that far apart have one in common."""
    return range(seed, seed + count)


def echo_text(tokens: Sequence[int]) -> str:
    """Return the text of tokens: that of each is its number and a space."""
    return "".join(f"{number} " for number in tokens)


def read_begun(lines: Iterable[str]) -> list[Begun]:
    """Return what echo nodes have printed."""
    return [Begun(**json.loads(line)) for line in lines if line.startswith("{")]


async def serve(nodes: Sequence[Node]) -> None:
    """Run nodes until SIGTERM; errors as of `Node.run`."""
    running = [asyncio.ensure_future(node.run()) for node in nodes]
    # The signal reaches the one node that asked for it last: when that has ended, the others do.
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for node in nodes:
        node.end()
    await asyncio.gather(*running)


def main() -> None:
    """Be one node or several, until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True, action="append", help="may be repeated")
    parser.add_argument("--name", required=True, action="append", help="may be repeated: a node each")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--seconds", type=float, default=1.0, help="of an answer of --new-tokens")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--slots", type=int, default=64)
    options = parser.parse_args()

    async def run() -> None:  # nodes are made where their loop runs
        await serve(
            [
                Node(
                    NodeConfig(name, tuple(options.coordinator), options.listen),
                    EchoReplica(name, options.seconds / options.new_tokens, options.slots),
                )
                for name in options.name
            ]
        )

    asyncio.run(run())


if __name__ == "__main__":
    main()
