"""Faults around the nodes: of Redis, of a coordinator, of certificates, and a client that hardly reads."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Event
from typing import ClassVar

from qubic_lab.chaos.case import SILENT_S, ChaosCase
from qubic_lab.chaos.clients import Answered, ask_slowly
from qubic_lab.chaos.stage import NODES, Stage, echo_question
from qubic_lab.settings import PREFIX
from qubic_lab.wire.certificates import ROLES, make_certificates

DISK_BYTES = 8 * 2**20
HOST = "127.0.0.1"


class RedisKilled(ChaosCase):
    """Whoever runs it starts it again: here the embedded server's watcher."""

    name = "redis-killed"
    does = "Redis is killed (SIGKILL) and started again"

    def strike(self, stage: Stage) -> None:
        stage.send_to_redis(signal.SIGKILL)


class RedisPaused(ChaosCase):
    """Its connections stay open."""

    name = "redis-paused"
    does = "Redis is stopped (SIGSTOP) for 10 s"
    limit_s, lasts_s = SILENT_S, 10.0

    def strike(self, stage: Stage) -> None:
        stage.send_to_redis(signal.SIGSTOP)

    def mend(self, stage: Stage) -> None:
        stage.send_to_redis(signal.SIGCONT)


class RedisDiskFull(ChaosCase):
    """Its folder is a small file system in memory, which another file fills."""

    name = "redis-disk-full"
    does = "the disk with Redis's file is full for 8 s (a tmpfs of 8 MiB)"
    limit_s, lasts_s = SILENT_S, 8.0

    def missing(self) -> str:
        if sys.platform != "linux" or os.geteuid() != 0:
            return "only root on Linux can mount a small file system"
        return ""

    def prepare(self, folder: Path, stack: ExitStack) -> Mapping[str, str]:
        redis = folder / "redis"
        redis.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "tmpfs"]
        subprocess.run(["mount", *options, str(redis)], check=True, capture_output=True)
        stack.callback(subprocess.run, ["umount", "--lazy", str(redis)], check=False, capture_output=True)
        self._ballast = redis / "ballast"
        return {}

    def strike(self, stage: Stage) -> None:
        with suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4_096))

    def mend(self, stage: Stage) -> None:
        self._ballast.unlink()


class CoordinatorKilled(ChaosCase):
    """Clients know both; its tasks are taken over by the other one."""

    name = "coordinator-killed"
    does = "one of two coordinators is killed (SIGKILL) and started again after 5 s"
    coordinators = 2

    def strike(self, stage: Stage) -> None:
        stage.cluster.kill("coordinator-1")

    def mend(self, stage: Stage) -> None:
        stage.cluster.start_again("coordinator-1")


class CertificateExpired(ChaosCase):
    """All members have it. Open connections stay; new ones are refused until it is renewed, without a restart."""

    name = "certificate-expired"
    does = "the members' certificate expires, and is renewed 5 s later"
    limit_s = SILENT_S

    def prepare(self, folder: Path, stack: ExitStack) -> Mapping[str, str]:
        self._folder = folder / "tls"
        [certificate] = make_certificates(self._folder, [[HOST]], datetime.now(UTC), roles=ROLES)
        files = {"certificate": certificate, "key": certificate.with_suffix(".key")}
        files["authority"] = self._folder / "authority.pem"
        return {f"{PREFIX}TLS_{name.upper()}": str(path) for name, path in files.items()}

    def start(self, stage: Stage) -> None:
        stage.start_echo(*(f"{name}@{HOST}" for name in NODES))

    def begin(self, stage: Stage, struck_s: float) -> None:
        """Give the members the certificate that will expire."""
        self._renew(datetime.now(UTC) + timedelta(seconds=struck_s - stage.clock(), days=-1))

    def strike(self, stage: Stage) -> None:
        """Do nothing: it expires by itself."""

    def mend(self, stage: Stage) -> None:
        self._renew(datetime.now(UTC))

    def _renew(self, now: datetime) -> None:
        make_certificates(self._folder, [[HOST]], now, days=1, renew=True, roles=ROLES)


class SlowClient(ChaosCase):
    """They have small buffers, and take a byte a second while others ask."""

    name = "slow-client"
    does = "three clients take a byte a second of their answers for 15 s"
    limit_s, lasts_s = SILENT_S, 15.0
    tokens: ClassVar[int] = 200
    slow: ClassVar[int] = 3

    def start(self, stage: Stage) -> None:
        super().start(stage)
        self._may_hurry = Event()

    def strike(self, stage: Stage) -> None:
        """Do nothing: the clients are the fault."""

    def mend(self, stage: Stage) -> None:
        self._may_hurry.set()

    def culprits(self, stage: Stage) -> list[Callable[[], Answered]]:
        url = next(iter(stage.cluster.urls.values()))
        numbers = range(stage.requests, stage.requests + self.slow * self.tokens, self.tokens)
        asked = [echo_question(number, stage.clock(), self.tokens, "slow") for number in numbers]
        return [partial(ask_slowly, url, each, stage.clock, self._may_hurry.is_set) for each in asked]


SERVICE_CASES: tuple[Callable[[], ChaosCase], ...] = (
    RedisKilled,
    RedisPaused,
    CoordinatorKilled,
    CertificateExpired,
    RedisDiskFull,
    SlowClient,
)
