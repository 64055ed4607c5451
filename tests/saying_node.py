"""A node, in a process of its own, whose engine says a given text: right, wrong, or slowly enough to be killed."""

import argparse
import asyncio
from collections.abc import AsyncGenerator

from qubic_lab.bench.echo_node import serve
from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

BEGUN = "begun"


class SayingReplica:
    """Says the text word by word, with a pause after each."""

    def __init__(self, text: str, pause_s: float) -> None:
        self._text, self._pause_s = text, pause_s

    async def start(self) -> pb.Capabilities:
        return pb.Capabilities(model="saying", model_hash="saying", layers=[1], slots=4, tokens_per_s=10.0)

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        for number, word in enumerate(self._text.split()):
            yield pipeline_pb2.GenerateReply(token=pipeline_pb2.Token(id=number, text=f"{word} ", logprob=-0.1))
            print(BEGUN, flush=True)
            await asyncio.sleep(self._pause_s)
        end = pipeline_pb2.End(text=self._text, finish_reason="stop", prompt_tokens=1)
        yield pipeline_pb2.GenerateReply(end=end)

    async def lost(self) -> QubicLabError:
        return await asyncio.Future()

    async def stop(self) -> None:
        pass


async def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--coordinator", "--name", "--listen", "--text"):
        parser.add_argument(name, required=True)
    parser.add_argument("--pause-s", type=float, default=0.0)
    options = parser.parse_args()
    replica = SayingReplica(options.text, options.pause_s)
    await serve([Node(NodeConfig(options.name, (options.coordinator,), options.listen), replica)])


if __name__ == "__main__":
    asyncio.run(main())
