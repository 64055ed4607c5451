"""A node whose engine is replaced by a wait: the real process, registration and service around it.

`python -m qubic_lab.bench.echo_node --coordinator HOST:PORT --name NAME --seconds 1` answers each request after so many
seconds with its tokens' numbers, as many at the same time as it has slots. What a coordinator adds to a node's own time
can be measured with it, and faults can be tried: a prompt with KILL in it ends the process at once.
"""

import argparse
import asyncio
import os
from collections.abc import AsyncIterator

from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

KILL = "[this ends the node]"


class EchoReplica:
    """Waits in place of computing; token i of every answer has the id i and the text `i `."""

    def __init__(self, seconds: float, slots: int) -> None:
        self._seconds, self._slots = seconds, slots

    async def start(self) -> pb.Capabilities:
        """Tell what it can do; there is nothing to start."""
        return pb.Capabilities(
            model="echo", layers=[1], dtype="none", devices=["none"], slots=self._slots, tokens_per_s=1 / self._seconds
        )

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncIterator[pipeline_pb2.GenerateReply]:
        """Give the tokens that are not given yet, evenly over the time that they take."""
        if KILL in request.prompt:
            os._exit(1)
        tokens = request.sampling.max_new_tokens
        for number in range(len(request.forced_token_ids), tokens):
            await asyncio.sleep(self._seconds / tokens)
            token = pipeline_pb2.Token(id=number, text=f"{number} ")
            yield pipeline_pb2.GenerateReply(token=token)
        text = "".join(f"{number} " for number in range(tokens))
        yield pipeline_pb2.GenerateReply(end=pipeline_pb2.End(text=text, finish_reason="length", prompt_tokens=1))

    async def lost(self) -> QubicLabError:
        """Never return: nothing of it can be lost."""
        return await asyncio.Future()

    async def stop(self) -> None:
        """Do nothing: there is nothing to end."""


def main() -> None:
    """Be one node, until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True, action="append", help="may be repeated")
    parser.add_argument("--name", required=True)
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--seconds", type=float, default=1.0, help="of a whole answer")
    parser.add_argument("--slots", type=int, default=64)
    options = parser.parse_args()
    config = NodeConfig(options.name, tuple(options.coordinator), options.listen)

    async def run() -> None:
        await Node(config, EchoReplica(options.seconds, options.slots)).run()

    asyncio.run(run())


if __name__ == "__main__":
    main()
