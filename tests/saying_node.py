"""Replicas that say given texts; run as a program, a node of one, which can be killed while it speaks."""

import argparse
import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from qubic_lab.cluster.identity import claimed_name
from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.errors import InputError, QubicLabError, RankError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

BEGUN = "begun"


@dataclass
class Saying:
    """A replica that says one text for each sample after the other; `is_lost` ends it in the middle of an answer.

    It waits for `waits` seconds before each answer, and after each word for `pause_s`, having printed BEGUN. Each word
    takes one of `words`.
    """

    texts: tuple[str, ...]
    waits: float = 0.0
    pause_s: float = 0.0
    is_lost: bool = False
    model_hash: str = "hash"
    type: str = "whole"
    slots: int = 4
    asked: int = 0
    prompt: str = ""
    words: asyncio.Semaphore | None = None

    async def start(self) -> pb.Capabilities:
        return pb.Capabilities(
            model="saying", model_hash=self.model_hash, layers=[1], slots=self.slots, tokens_per_s=10.0
        )

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        self.prompt = request.prompt
        if request.samples > self.slots:
            raise InputError(f"samples is {request.samples}: this pipeline answers at most {self.slots} at once")
        for sample in range(max(1, request.samples)):
            text = self.texts[self.asked % len(self.texts)]
            self.asked += 1
            await asyncio.sleep(self.waits)
            words = text.split()
            for number, word in enumerate(words):
                if self.is_lost and number == 2:
                    raise RankError("rank 0 is gone")
                if self.words is not None:
                    await self.words.acquire()
                token = pipeline_pb2.Token(id=number, text=f"{word} ", logprob=-0.1)
                if not request.whole:
                    yield pipeline_pb2.GenerateReply(sample=sample, token=token)
                if self.pause_s:
                    print(BEGUN, flush=True)
                    await asyncio.sleep(self.pause_s)
            end = pipeline_pb2.End(
                text=text,
                finish_reason="stop",
                prompt_tokens=1,
                token_ids=range(len(words)),
                logprobs=[-0.1] * len(words),
            )
            yield pipeline_pb2.GenerateReply(sample=sample, end=end)

    async def stats(self) -> pipeline_pb2.StatsReply:
        return pipeline_pb2.StatsReply()

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
    replica = Saying((options.text,), pause_s=options.pause_s)
    with claimed_name([options.coordinator], options.name) as (name, identity):
        await Node(NodeConfig(name, (options.coordinator,), options.listen, identity=identity), replica).run()


if __name__ == "__main__":
    asyncio.run(main())
