"""A real node (process, registration and service) whose engine only waits, for measurements and fault injection.

`python -m qubic_lab.bench.echo_node --coordinator HOST:PORT --name NAME --seconds 1` answers with numbers that count up
from the request's seed; 16 tokens take one second, fewer tokens take less. It handles as many requests at once as it
has slots. A prompt that contains KILL ends the process at once. SIGUSR1 makes it ten times slower and SIGUSR2 lets each
request fail, until the same signal comes again. The node prints a line of JSON for each request that it starts (see
`Begun`). Several names make several nodes in one process, each with its own service.
"""

import argparse
import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass

from qubic_lab.cluster.identity import claimed_name
from qubic_lab.cluster.node import Node, NodeConfig
from qubic_lab.errors import QubicLabError
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

KILL = "[this ends the node]"
MODEL = "echo"


@dataclass(frozen=True)
class Begun:
    """A node started a request at `at_s` (`time.monotonic`), when `known` tokens of the answer were known."""

    node: str
    prompt: str
    known: int
    at_s: float


class EchoReplica:
    """Waits `token_s` seconds for each token instead of computing it; the tokens of an answer are `echo_tokens`.

    With `says`, every answer ends by itself and has that text.
    """

    def __init__(self, node: str, token_s: float, slots: int, says: str = "") -> None:
        self._node, self._token_s, self._slots, self._says = node, token_s, slots, says
        self._slower, self._fails = 1, False

    async def start(self) -> pb.Capabilities:
        return pb.Capabilities(
            model=MODEL, layers=[1], dtype="none", devices=["none"], slots=self._slots, tokens_per_s=1 / self._token_s
        )

    async def generate(self, request: pipeline_pb2.GenerateRequest) -> AsyncGenerator[pipeline_pb2.GenerateReply, None]:
        """Yield the tokens of the answer that are not known yet."""
        if KILL in request.prompt:
            os._exit(1)
        tokens = echo_tokens(request.sampling.seed, request.sampling.max_new_tokens)
        known, due_s = len(request.forced_token_ids), time.monotonic()
        print(json.dumps(asdict(Begun(self._node, request.prompt, known, due_s))), flush=True)
        for number in tokens[known:]:
            if self._fails:
                raise QubicLabError("this node was told to fail")
            due_s += self._token_s * self._slower
            await asyncio.sleep(due_s - time.monotonic())
            yield pipeline_pb2.GenerateReply(token=_echo_token(number, request.sampling))
        reason = "stop" if self._says else "length"
        end = pipeline_pb2.End(text=self._says or echo_text(tokens), finish_reason=reason, prompt_tokens=1)
        if request.HasField("prompt_logprobs"):
            end.prompt.add(raw=request.prompt.encode())
        yield pipeline_pb2.GenerateReply(end=end)

    async def stats(self) -> pipeline_pb2.StatsReply:
        return pipeline_pb2.StatsReply()

    def change_pace(self) -> None:
        """Become ten times slower, or as fast as before."""
        self._slower = 11 - self._slower

    def change_luck(self) -> None:
        """Let each request fail, or no longer."""
        self._fails = not self._fails

    async def lost(self) -> QubicLabError:
        return await asyncio.Future()

    async def stop(self) -> None:
        """Do nothing, as there is nothing to stop."""


def echo_tokens(seed: int, count: int) -> range:
    """Return the token ids of an answer; answers whose seeds are `count` apart share none."""
    return range(seed, seed + count)


def _echo_token(number: int, sampling: pipeline_pb2.Sampling) -> pipeline_pb2.Token:
    """Return a token, which is certain."""
    text = echo_text([number])
    token = pipeline_pb2.Token(id=number, text=text, raw=text.encode())
    if sampling.logprobs:
        token.logprob = 0.0
    if sampling.top_logprobs:
        token.top.add(id=number, raw=token.raw)
    return token


def echo_text(tokens: Sequence[int]) -> str:
    """Return the text of tokens: each is its number and a space."""
    return "".join(f"{number} " for number in tokens)


def read_begun(lines: Iterable[str]) -> list[Begun]:
    """Parse what echo nodes have printed."""
    return [Begun(**json.loads(line)) for line in lines if line.startswith("{")]


async def serve(nodes: Sequence[Node], replica: EchoReplica) -> None:
    """Run nodes until SIGTERM, with the signals of one replica; errors as for `Node.run`."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, replica.change_pace)
    loop.add_signal_handler(signal.SIGUSR2, replica.change_luck)
    running = [asyncio.ensure_future(node.run()) for node in nodes]
    # Only the last node that installed its handler gets the signal; when it has ended, the others are ended.
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for node in nodes:
        node.end()
    await asyncio.gather(*running)


def main() -> None:
    """Run one node or several until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--coordinator", required=True, action="append", help="may be repeated")
    parser.add_argument("--name", required=True, action="append", help="may be repeated, for one node each")
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--address", default="", help="where coordinators reach it, if a relay is between")
    parser.add_argument("--seconds", type=float, default=1.0, help="time of an answer of --new-tokens")
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--says", default="", help="the text of every answer")
    options = parser.parse_args()

    async def run(identities: Sequence[tuple[str, str]]) -> None:  # nodes must be created inside their event loop
        pace_s = options.seconds / options.new_tokens
        replicas = [EchoReplica(name, pace_s, options.slots, options.says) for name, _ in identities]
        where = {"listen": options.listen, "address": options.address}
        configs = [NodeConfig(name, tuple(options.coordinator), identity=own, **where) for name, own in identities]
        await serve([Node(*each) for each in zip(configs, replicas, strict=True)], replicas[-1])

    with ExitStack() as stack:
        asyncio.run(run([stack.enter_context(claimed_name(options.coordinator, name)) for name in options.name]))


if __name__ == "__main__":
    main()
