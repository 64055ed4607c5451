"""Faults of nodes: killed, stopped, slow, failing, cut off, with a wrong clock; a lost rank; a question that kills."""

import json
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import psutil

from qubic_lab.bench.echo_node import KILL
from qubic_lab.bench.local_cluster import free_ports
from qubic_lab.chaos.case import SILENT_S, ChaosCase
from qubic_lab.chaos.clients import GIVE_UP_S, PATH, Question
from qubic_lab.chaos.relay import TcpRelay, tcp_relay
from qubic_lab.chaos.stage import NODES, Stage
from qubic_lab.errors import QubicLabError
from qubic_lab.model.config import CONFIGS
from qubic_lab.model.random_model import write_random_model

FAKETIME = ("libfaketimeMT.so.1", "libfaketime.so.1")
RANK_TOKENS = 80
"""Of an answer of the tiny model, which takes about half a second on one core."""
AT_WORK_S, LOOK_S = 10.0, 0.002
"""A rank is killed when its pipeline has a request, at the latest after this time; and how often that is looked at."""
_TINY = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 2_048,
}


class NodeKilled(ChaosCase):
    """The node with the most requests."""

    name = "node-killed"
    does = "a node is killed (SIGKILL) and started again after 5 s"

    def strike(self, stage: Stage) -> None:
        self._victim = stage.busiest()
        stage.cluster.kill(self._victim)

    def mend(self, stage: Stage) -> None:
        stage.cluster.start_again(self._victim)


class NodeStopped(ChaosCase):
    """Its connections stay open; when it goes on, it writes what nobody wants any more."""

    name = "node-stopped"
    does = "a node is stopped (SIGSTOP) for 60 s"
    limit_s, lasts_s = SILENT_S, 60.0

    def strike(self, stage: Stage) -> None:
        self._victim = stage.busiest()
        stage.cluster.send(self._victim, signal.SIGSTOP)

    def mend(self, stage: Stage) -> None:
        stage.cluster.send(self._victim, signal.SIGCONT)


class NodeSlow(ChaosCase):
    """It stays healthy, and only its pace is another one."""

    name = "node-slow"
    does = "a node becomes ten times slower for 15 s"
    limit_s, lasts_s = SILENT_S, 15.0
    number: ClassVar[signal.Signals] = signal.SIGUSR1

    def strike(self, stage: Stage) -> None:
        self._victim = stage.busiest()
        stage.cluster.send(self._victim, self.number)

    def mend(self, stage: Stage) -> None:
        stage.cluster.send(self._victim, self.number)


class NodeFails(NodeSlow):
    """Its heartbeats and health checks go on."""

    name = "node-errors"
    does = "a node answers each request with an error for 10 s"
    limit_s, lasts_s = SILENT_S, 10.0
    number = signal.SIGUSR2


class Partition(ChaosCase):
    """The node's way to the coordinator and the coordinator's way to the node go through relays."""

    name = "partition"
    does = "nothing passes between a node and the coordinator for 20 s (TCP relays)"
    limit_s, lasts_s = SILENT_S, 20.0

    def start(self, stage: Stage) -> None:
        [port] = free_ports(1)
        registry = int(stage.cluster.registries[0].rpartition(":")[2])
        self._relays: list[TcpRelay] = [stage.stack.enter_context(tcp_relay(each)) for each in (registry, port)]
        up, down = (f"127.0.0.1:{relay.port}" for relay in self._relays)
        stage.start_echo(*NODES[1:])
        stage.start_echo(NODES[0], registries=(up,), where=("--listen", f"127.0.0.1:{port}", "--address", down))

    def strike(self, stage: Stage) -> None:
        for relay in self._relays:
            relay.cut()

    def mend(self, stage: Stage) -> None:
        for relay in self._relays:
            relay.heal()


class NodeClock(ChaosCase):
    """Only its wall clock: a monotonic one never jumps."""

    name = "node-clock"
    does = "a node's clock jumps ahead by an hour (libfaketime)"

    def missing(self) -> str:
        return "" if _faketime() else "libfaketime is not installed here: apt-get install libfaketime"

    def start(self, stage: Stage) -> None:
        self._clock = stage.folder / "clock"
        self._clock.write_text("+0\n")
        fake = {
            "LD_PRELOAD": str(_faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        stage.start_echo(NODES[0], environment=fake)
        stage.start_echo(*NODES[1:])

    def strike(self, stage: Stage) -> None:
        self._clock.write_text("+3600\n")


class PoisonTask(ChaosCase):
    """Its three attempts end three nodes; then it is a dead letter, which its client is told."""

    name = "poison-task"
    does = "a question ends each node that works on it; nodes are started again after a second"
    restarts = True

    def questions(self, stage: Stage, due_s: Sequence[float], struck_s: float) -> list[Question]:
        asked = super().questions(stage, due_s, struck_s)
        place = next(number for number, at_s in enumerate(due_s) if at_s >= struck_s)
        asked[place] = replace(asked[place], body=asked[place].body | {"prompt": KILL}, answer=None)
        return asked

    def strike(self, stage: Stage) -> None:
        """Do nothing: the question is asked by one of the clients."""


class RankKilled(ChaosCase):
    """Of two replicas of a tiny random model one has two ranks, the other one; both give the same tokens."""

    name = "rank-killed"
    does = "one rank of a two-rank pipeline is killed; another pipeline is there"
    different: ClassVar[int] = 8
    """Different questions; each is asked once undisturbed."""

    def prepare(self, folder: Path, stack: ExitStack) -> Mapping[str, str]:
        shape = json.loads(CONFIGS["smollm2"].read_text()) | _TINY
        (folder / "tiny.json").write_text(json.dumps(shape))
        write_random_model(str(folder / "tiny.json"), folder / "tiny")
        return {}

    def start(self, stage: Stage) -> None:
        for name, ranks in zip(NODES[:2], (2, 1), strict=True):
            stage.cluster.start_node(name, str(stage.folder / "tiny"), "fp32", 1, 16, ranks)
        stage.cluster.wait_for_nodes(*NODES[:2])

    def questions(self, stage: Stage, due_s: Sequence[float], struck_s: float) -> list[Question]:
        url = next(iter(stage.cluster.urls.values()))
        bodies = [self._body(number) for number in range(self.different)]
        with httpx2.Client(base_url=url, timeout=GIVE_UP_S, trust_env=False) as client:
            found = [client.post(PATH, json=body).json() for body in bodies]
        right = [(tuple(each["token_ids"]), each["text"]) for each in found]
        places = [number % self.different for number in range(len(due_s))]
        return [Question(number, due_s[number], bodies[place], right[place]) for number, place in enumerate(places)]

    def _body(self, number: int) -> dict[str, Any]:
        sampling = {"temperature": 1.0, "seed": number, "ignore_eos": True}
        return {"prompt": f"What is {number} + 1?", "max_new_tokens": RANK_TOKENS, **sampling}

    def strike(self, stage: Stage) -> None:
        node = psutil.Process(stage.cluster.pid(NODES[0]))
        ranks = [each for each in node.children(recursive=True) if "qubic_lab.pipeline.rank" in each.cmdline()]
        if len(ranks) != 2:
            raise QubicLabError(f"the pipeline has {len(ranks)} ranks instead of 2: {stage.cluster.log(NODES[0])}")
        until_s = time.monotonic() + AT_WORK_S
        while not stage.work().get(NODES[0]) and time.monotonic() < until_s:  # answers are short on a quiet machine
            time.sleep(LOOK_S)
        ranks[-1].kill()


def _faketime() -> Path | None:
    found = (path for name in FAKETIME for path in Path("/usr/lib").glob(f"**/faketime/{name}"))
    return next(found, None)


NODE_CASES: tuple[Callable[[], ChaosCase], ...] = (
    NodeKilled,
    NodeStopped,
    RankKilled,
    NodeSlow,
    NodeFails,
    Partition,
    NodeClock,
    PoisonTask,
)
