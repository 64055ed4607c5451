"""Units of systemd and the settings beside them: they verify, are confined, and agree with the network plan and us."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import redis
import yaml
from clusters import wait_until
from commands import parse
from limits import RateLimitItemPerMinute
from sqlalchemy import make_url

from qubic_lab import backup
from qubic_lab.api.access import make_limiter
from qubic_lab.api.http_server import STOP_S
from qubic_lab.cluster.node import DRAIN_S
from qubic_lab.cluster.redis_server import connect, embedded_binary
from qubic_lab.cluster.registry import Registry
from qubic_lab.cluster.tasks import TaskQueue
from qubic_lab.errors import InputError
from qubic_lab.launch_plan.network import EPHEMERAL, SERVICES, SUBNET, Network
from qubic_lab.settings import settings
from qubic_lab.testbed.units import read_environment

ROOT = Path(__file__).parents[1]
UNITS = ROOT / "launch" / "systemd"
SERVICE_NAMES = ("orchestrator", "node", "pipeline", "collector", "dashboard")
MOST_EXPOSED = 2.0
"""Of systemd's own score from 0 (confined) to 10; it calls less than 2.5 OK."""
Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Return a function that writes the files of a host below a folder, and gives that folder."""

    def run(*arguments: str) -> Path:
        folder = tmp_path / arguments[1]
        command = [ROOT / "launch" / "install.sh", *arguments]
        subprocess.run(command, env={**os.environ, "DESTDIR": str(folder)}, check=True)
        return folder

    return run


def lines_of(unit: str, key: str) -> list[str]:
    """Return the values of a key of a service, its shared drop-in first."""
    files = (UNITS / "qubic-.service.d" / "common.conf", UNITS / f"qubic-{unit}.service")
    return [
        line.partition("=")[2] for file in files for line in file.read_text().splitlines() if line.startswith(f"{key}=")
    ]


def environment_of(folder: Path, *names: str) -> dict[str, str]:
    """Return the variables of the environment files of a host."""
    files = [folder / "etc" / "qubic-lab" / f"{name}.env" for name in names]
    return {name: value for file in files for name, value in read_environment(file.read_text()).items()}


def started(unit: str, variables: dict[str, str]) -> list[str]:
    """Return what a service starts, as systemd would substitute it: `$NAME` is split into words."""
    (line,) = lines_of(unit, "ExecStart")
    line = re.sub(r"\$\{(\w+)\}", lambda found: shlex.quote(variables[found[1]]), line)
    return shlex.split(re.sub(r"\$(\w+)", lambda found: variables[found[1]], line))


@pytest.fixture
def placed(tmp_path: Path) -> Path:
    """The units, for a checkout that is here."""
    folder = shutil.copytree(UNITS, tmp_path / "systemd")
    for file in folder.glob("qubic-*.service"):
        file.write_text(file.read_text().replace("/opt/qubic-lab", str(ROOT)))
    return folder


def analyse(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed here")
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:", "SYSTEMD_LOG_LEVEL": "warning"}
    command = [tool, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_the_units_verify(placed: Path) -> None:
    units = [f"./qubic-{name}.service" for name in SERVICE_NAMES] + ["./qubic-orchestrator.socket"]
    done = analyse(placed, "verify", "--man=no", "--recursive-errors=no", *units)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_weekly_units_verify_as_those_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for file in UNITS.glob("qubic-lab-week.*"):
        text = file.read_text().replace("%h/qubic-lab/", f"{ROOT}/")
        (tmp_path / file.name).write_text(text)
    done = analyse(tmp_path, "--user", "verify", "--man=no", "./qubic-lab-week.service", "./qubic-lab-week.timer")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICE_NAMES)
def test_a_service_is_confined(name: str, placed: Path) -> None:
    most = f"--threshold={10 * MOST_EXPOSED:g}"
    done = analyse(placed, "security", "--offline=true", "--no-pager", most, f"./qubic-{name}.service")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("host", [("first", "vm-1", "10.0.0.10"), ("other", "vm-2", "10.0.0.20", "10.0.0.10")])
def test_what_a_service_starts_is_a_command_of_ours(host: tuple[str, ...], install: Install) -> None:
    folder = install(*host)
    installed = {file.stem.removeprefix("qubic-") for file in folder.glob("etc/systemd/system/qubic-*.service")}
    assert installed == ({*SERVICE_NAMES} if host[0] == "first" else {"node", "pipeline"})
    for unit in installed - {"pipeline"}:
        own = "coordinator" if unit == "orchestrator" else unit
        variables = environment_of(folder, "host", own)
        program, *arguments = started(unit, variables)
        assert program == "/opt/qubic-lab/.venv/bin/qubic-lab"
        assert parse(arguments) == {"orchestrator": "coordinator", "collector": "oracle collect"}.get(unit, unit)
        known = {f"QUBIC_LAB_{name.upper()}" for name in type(settings()).model_fields}
        assert {name for name in variables if name.startswith("QUBIC_LAB_")} <= known
        assert f"/etc/qubic-lab/{own}.env" in lines_of(unit, "EnvironmentFile")
    rank = {"INTERFACE": "eth1"} | environment_of(folder, "host", "pipeline")
    script, number, first, _, *rest = started("pipeline", rank)
    assert (ROOT / Path(script).relative_to("/opt/qubic-lab")).stat().st_mode & stat.S_IXUSR
    assert (number, first, rest) == ("0" if host[0] == "first" else "1", "10.0.0.10", ["--model", "smollm2"])


def test_ports_and_addresses_are_those_of_the_plan(install: Install) -> None:
    first, other = install("first", "vm-1", "10.0.0.10"), install("other", "vm-2", "10.0.0.20", "10.0.0.10")
    ports = {name: service.ports[0] for name, service in SERVICES.items()}
    arguments = started("orchestrator", environment_of(first, "host", "coordinator"))
    assert arguments[2:] == [
        "--listen",
        f"10.0.0.10:{ports['coordinator']}",
        "--nodes",
        f"10.0.0.10:{ports['registry']}",
    ]
    node = started("node", environment_of(other, "host", "node"))
    assert f"10.0.0.20:{ports['node']}" in node and f"10.0.0.10:{ports['registry']}" in node
    assert node[-2:] == ["--health-port", str(ports["health"])]
    assert ["--metrics-port", str(ports["metrics"])] == lines_of("collector", "ExecStart")[0].split()[3:5]
    assert f"127.0.0.1:{ports['dashboard']}" in lines_of("dashboard", "ExecStart")[0]
    assert (
        f"ListenStream=10.0.0.10:{ports['coordinator']}"
        in (first / "etc/systemd/system/qubic-orchestrator.socket.d/address.conf").read_text().splitlines()
    )
    redis = (first / "etc/redis/qubic-lab.conf").read_text().splitlines()
    assert {"port 0", f"tls-port {ports['redis']}", "bind 127.0.0.1 10.0.0.10", "tls-auth-clients yes"} <= {*redis}
    postgres = (first / "etc/postgresql/qubic-lab.conf").read_text().splitlines()
    assert Network().reach(SERVICES["postgres"]) == "host" and "listen_addresses = 'localhost'" in postgres
    low, high = EPHEMERAL
    assert f"net.ipv4.ip_local_port_range = {low} {high}" in (other / "etc/sysctl.d/60-qubic-lab.conf").read_text()
    for unit in ("orchestrator", "node", "pipeline", "dashboard"):
        assert lines_of(unit, "IPAddressAllow") == [f"localhost {SUBNET}"]


def test_hosts_of_several_coordinators_share_the_database_of_the_first(install: Install) -> None:
    every = "10.0.0.10,10.0.0.20"
    first, second, third = (
        install(role, f"vm-{number}", f"10.0.0.{number}0", every)
        for role, number in (("first", 1), ("other", 2), ("other", 3))
    )
    postgres = (first / "etc/postgresql/qubic-lab.conf").read_text().splitlines()
    assert {"listen_addresses = 'localhost,10.0.0.10'", "ssl = on"} <= {*postgres}
    allowed = [line.split() for line in (first / "etc/postgresql/qubic-lab.hba").read_text().splitlines()]
    beyond = {words[3]: (words[0], *words[4:]) for words in allowed if words[0].startswith("host")}
    with_tls = ("hostssl", "scram-sha-256", "clientcert=verify-ca")
    assert beyond == {"127.0.0.1/32": ("host", "scram-sha-256"), "10.0.0.10/32": with_tls, "10.0.0.20/32": with_tls}
    url = make_url(environment_of(first, "coordinator")["QUBIC_LAB_DATABASE_URL"])
    assert (url.host, url.query["sslmode"]) == ("10.0.0.10", "verify-full")
    assert (second / "etc/systemd/system/qubic-orchestrator.socket.d/address.conf").exists()
    assert not (second / "etc/qubic-lab/coordinator.env").exists()  # that of the first is copied
    assert not list(third.glob("etc/systemd/system/qubic-orchestrator*"))
    for folder in (first, second, third):
        node = environment_of(folder, "node")
        assert node["COORDINATORS"] == "10.0.0.10:5001,10.0.0.20:5001"
        assert ("--health-port" in node["NODE_OPTIONS"]) == (folder == third)


def test_secrets_are_for_root_alone_and_stay_what_they_are(install: Install) -> None:
    folder = install("first", "vm-1", "10.0.0.10")
    files = sorted((folder / "etc" / "qubic-lab").glob("*.env"))
    assert len(files) == 6 and {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    assert not re.search(r"@[A-Z_]+@", "".join(file.read_text() for file in files))
    acl = folder / "etc/redis/qubic-lab.acl"
    before = [file.read_text() for file in (*files, acl)]
    password = re.search(r"coordinator:(\w{64})@10\.0\.0\.10:6379", before[1])
    assert password is not None and password[1] not in acl.read_text()
    node = environment_of(folder, "host", "node")
    assert password[1] not in str(node) and "REDIS" not in str(node)
    install("first", "vm-1", "10.0.0.10")
    assert [file.read_text() for file in (*files, acl)] == before
    assert (
        environment_of(install("other", "vm-2", "10.0.0.20", "10.0.0.10"), "node")["COORDINATORS"] == "10.0.0.10:5001"
    )


def test_a_stop_waits_for_what_runs() -> None:
    limits = {unit: int(lines_of(unit, "TimeoutStopSec")[0]) for unit in SERVICE_NAMES}
    assert limits["node"] >= DRAIN_S + 10 and limits["orchestrator"] >= STOP_S + 10
    # Else SIGTERM would reach ranks, which end at once, while their node lets requests finish.
    assert lines_of("node", "KillMode") == ["mixed"]


def test_a_wrong_call_of_the_installer_says_how(tmp_path: Path) -> None:
    command = [str(ROOT / "launch" / "install.sh"), "other", "vm-2", "10.0.0.20"]
    done = subprocess.run(command, env={**os.environ, "DESTDIR": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage:") and not any(tmp_path.iterdir())


def test_containers_run_commands_of_ours_unprivileged() -> None:
    compose = yaml.safe_load((ROOT / "launch" / "compose.yaml").read_text())
    services = compose["services"]
    assert {parse(each["command"]) for each in services.values()} == {"coordinator", "node", "oracle collect"}
    for each in services.values():
        assert each["read_only"] and each["cap_drop"] == ["ALL"] and each["network_mode"] == "host"
        assert int(each["stop_grace_period"].removesuffix("s")) >= STOP_S + 10
        assert {volume.partition(":")[0] for volume in each["volumes"]} <= compose["volumes"].keys()
        file = ROOT / "launch" / each["build"]["context"] / each["build"]["dockerfile"]
        assert file.samefile(ROOT / "launch" / "Containerfile")


def test_the_image_is_made_of_what_is_here() -> None:
    text = re.sub(r"\\\n", " ", (ROOT / "launch" / "Containerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {word for word, _ in lines} == {
        "ARG",
        "FROM",
        "RUN",
        "WORKDIR",
        "COPY",
        "USER",
        "ENV",
        "VOLUME",
        "ENTRYPOINT",
        "CMD",
    }
    copied = [path for word, rest in lines if word == "COPY" for path in rest.split()[:-1]]
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = {file.split("/")[0] for file in project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]}
    assert wanted | {"qubic_lab", "pyproject.toml", project["project"]["readme"]} <= {*copied}
    extras = re.search(r'"\.\[([\w,]+)\]"', text)
    assert extras is not None and {*extras[1].split(",")} <= project["project"]["optional-dependencies"].keys()
    words = [word for word, _ in lines]
    assert "RUN" not in words[words.index("USER") :], "all that needs root comes before"


@pytest.fixture
def redis_of_first(install: Install, tmp_path: Path) -> "tuple[Callable[[], AbstractContextManager[object]], str]":
    """A function that runs Redis with the first host's users and append-only file until it is killed; its URL."""
    folder = install("first", "vm-1", "10.0.0.10")
    password = re.search(r"coordinator:(\w+)@", (folder / "etc/qubic-lab/coordinator.env").read_text())
    assert password is not None
    socket, acl = tmp_path / "redis.sock", folder / "etc/redis/qubic-lab.acl"
    command = [shutil.which("redis-server") or embedded_binary(), "--port", "0", "--unixsocket", socket]
    command += ["--dir", tmp_path, "--aclfile", acl, "--appendonly", "yes", "--appendfsync", "always", "--save", ""]

    @contextmanager
    def run() -> Iterator[object]:
        socket.unlink(missing_ok=True)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                wait_until(socket.exists)
                yield server
            finally:
                server.kill()

    return run, f"unix://coordinator:{password[1]}@{socket}"


def test_the_user_of_redis_may_do_what_the_cluster_does_and_no_more(redis_of_first, tmp_path: Path) -> None:
    run, url = redis_of_first
    with run(), connect(url) as client:
        queue = TaskQueue(client)
        task = queue.submit({"prompt": "hi"})
        assert Registry(client).nodes() == [] and make_limiter(client).hit(RateLimitItemPerMinute(1), "x")
        backup.save(backup.Places({}, url), tmp_path / "a.tar.gz")
        backup.restore(tmp_path / "a.tar.gz", backup.Places({}, url), replace=True)
        assert queue.state(task) == "pending" and next(queue.notifications(lambda: False)) is not None
        for refused in ("FLUSHALL", "CONFIG GET *", "SHUTDOWN", "ACL LIST"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*refused.split())
        with pytest.raises(InputError, match="check user and password"):
            connect(f"unix://{url.partition('@')[2]}")


def test_a_killed_redis_has_all_tasks_again(redis_of_first) -> None:
    """Redis 8.0 reads its file as the user `default`, and leaves out scripts that this user may not run."""
    run, url = redis_of_first
    with run(), connect(url) as client:
        queue = TaskQueue(client)
        tasks = [queue.submit({"prompt": str(number)}) for number in range(3)]
        lease = queue.take("vm-1")
        assert lease is not None
        queue.complete(lease, {"text": "done"})
    with run(), connect(url) as client:
        queue = TaskQueue(client)
        assert sorted(queue.state(task) for task in tasks) == ["completed", "pending", "pending"]
