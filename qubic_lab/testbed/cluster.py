"""The project's services in a test bed: set up by launch/install.sh on each host, started by the units at its boot.

vm-1 and vm-2 have a coordinator each, vm-1 Redis and PostgreSQL (both with TLS) for both. The hosts are replicas, one
node each, or the ranks of one pipeline, which a node on vm-1 has joined.
"""

import shutil
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from qubic_lab.checked_yaml import codec
from qubic_lab.errors import InputError, QubicLabError, check_choice
from qubic_lab.launch_plan.network import SERVICES, Host, Network
from qubic_lab.settings import cache_folder
from qubic_lab.testbed.bed import FOLDER, Bed, boot, configure, halt, output_on
from qubic_lab.testbed.host import HostConfig
from qubic_lab.wire.certificates import make_certificates

CODE, TLS = "/opt/qubic-lab", "/etc/qubic-lab/tls"
DATABASE, CLIENT_CACHE = "/var/lib/postgresql/testbed", "/var/cache/testbed"
STAND_INS = "/opt/testbed/bin"
"""Programs of this folder take the place of `systemctl` and `sysctl`, which would speak to this machine's own."""
COORDINATORS, PIPELINE = 2, 3
"""Coordinators of a cluster, and hosts of a pipeline."""
KINDS = ("replicas", "pipeline")
"""One node on each host, or one pipeline over all of them."""


@dataclass(frozen=True)
class ClusterSpec:
    """What runs in a bed: one of KINDS, the model's folder, and threads of each rank.

    Raises:
        InputError: the kind is unknown.
    """

    kind: str
    model: Path
    threads: int = 1
    slots: int = 4
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        check_choice("cluster", self.kind, KINDS)

    @property
    def options(self) -> str:
        """Options of a node or of a rank."""
        return f"--threads {self.threads} --slots {self.slots} --dtype {self.dtype}"


def check(network: Network, spec: ClusterSpec) -> Path:
    """Return the checkout whose services run.

    Raises:
        InputError: something is missing; the message says what and the remedy.
    """
    code = Path(__file__).resolve().parents[2]
    if not (code / "launch" / "install.sh").exists() or not (code / ".venv").exists():
        raise InputError(f"{code} is no checkout with its .venv: a cluster in a test bed needs one (make setup)")
    if network.coordinators < COORDINATORS or (spec.kind == "pipeline" and network.nodes != PIPELINE):
        raise InputError(f"--nodes is {network.nodes}: a cluster has 2 or more, a pipeline 3")
    if shutil.which("redis-server") is None or _postgres() is None:
        raise InputError("redis-server and PostgreSQL are needed: apt install redis-server postgresql")
    return code


def start(bed: Bed, spec: ClusterSpec) -> None:
    """Set up the services on all hosts, start the hosts again with them, and wait until requests can be answered.

    Raises:
        InputError: as for `check`.
        QubicLabError: a step failed.
    """
    code = check(bed.network, spec)
    kernels = cache_folder("kernels")
    used = (code, Path(sys.executable).resolve(), (code / ".venv").resolve(), spec.model.resolve())
    above = {folder for each in used for folder in each.parents}
    opened = tuple(sorted(str(each) for each in above if not each.stat().st_mode & stat.S_IXOTH))
    binds = [(str(code), CODE), (str(_readable(spec.model)), f"/opt/models/{spec.model.name}")]
    binds += [(str(kernels), f"/var/cache/{user}/kernels") for user in ("qubic-lab", "qubic-node")]
    first = bed.network.hosts[0]
    for host in bed.network.hosts:
        halt(bed, host.name)
        configure(bed, HostConfig(host.name, tuple(binds), opened), _files(host), {})
        boot(bed, host.name)
    _start_database(bed, first)
    for host in bed.network.hosts:
        every = ",".join(each.address for each in coordinators(bed))
        install = (f"{CODE}/launch/install.sh", "first" if host.first else "other", host.name, host.address, every)
        output_on(bed, host.name, ("env", f"PATH={STAND_INS}:/usr/sbin:/usr/bin:/sbin:/bin", *install))
        _give_certificate(bed, host)
    token = _make_token(bed, first)
    for host in coordinators(bed)[1:]:
        _share_settings(bed, first, host)
    for host in bed.network.hosts:
        environment = client_environment(bed, token)
        _set_node(bed, host, spec)
        halt(bed, host.name)
        configure(bed, HostConfig(host.name, tuple(binds), opened, units(host, spec)), {}, environment)
        boot(bed, host.name)
    wait_until_open(bed, 1 if spec.kind == "pipeline" else bed.network.nodes)
    save(spec)


def units(host: Host, spec: ClusterSpec) -> tuple[str, ...]:
    """Return the units that a host starts."""
    names = []
    if host.first:
        names += ["redis-server", "postgresql"]
    if host.coordinator:
        names.append("qubic-orchestrator")
    if spec.kind == "pipeline":
        names.append("qubic-pipeline")
    if spec.kind == "replicas" or host.first:
        names.append("qubic-node")
    return tuple(names)


def coordinators(bed: Bed) -> list[Host]:
    """Return the hosts with a coordinator."""
    return [host for host in bed.network.hosts if host.coordinator]


def urls(bed: Bed) -> list[str]:
    """Return the addresses of the coordinators."""
    return [f"https://{host.address}:{SERVICES['coordinator'].ports[0]}" for host in coordinators(bed)]


def client_environment(bed: Bed, token: str) -> dict[str, str]:
    """Return the variables of a client on a host."""
    return {
        "PYTHONPATH": CODE,
        "PATH": f"{CODE}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "QUBIC_LAB_API_TOKEN": token,
        "QUBIC_LAB_COORDINATOR": urls(bed)[0],
        "QUBIC_LAB_CACHE": CLIENT_CACHE,
        "QUBIC_LAB_TLS_AUTHORITY": f"{TLS}/authority.pem",
        "QUBIC_LAB_TLS_CERTIFICATE": f"{TLS}/host.pem",
        "QUBIC_LAB_TLS_KEY": f"{TLS}/host.key",
    }


def _readable(model: Path) -> Path:
    """Return the model's folder, or a copy if its files are for their owner alone."""
    if all(each.stat().st_mode & stat.S_IROTH for each in model.rglob("*")):
        return model
    return Path(shutil.copytree(model, FOLDER / "models" / model.name, copy_function=shutil.copyfile))


def _files(host: Host) -> dict[str, str]:
    """Return files that a host has before it is set up."""
    quiet = "#!/bin/sh\nexit 0\n"
    files = {f"{STAND_INS}/systemctl": quiet, f"{STAND_INS}/sysctl": quiet}
    if host.first:
        files["/etc/systemd/system/postgresql.service"] = (
            "[Service]\nUser=postgres\nSupplementaryGroups=qubic-tls\nRuntimeDirectory=postgresql\nRestart=on-failure\n"
            f"ExecStart={_postgres()}/postgres -D {DATABASE}\n"
        )
    return files


def _postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


def _start_database(bed: Bed, host: Host) -> None:
    """Make a database server's folder, and run the server until the host starts again."""
    included = "/etc/postgresql/testbed/main/conf.d"  # where Debian's clusters have it, for launch/install.sh
    settings = f"include_dir '{included}'\\nunix_socket_directories = '/run/postgresql'\\n"
    script = f"""
mkdir -p {included}
install -d -o postgres -m 755 /run/postgresql && install -d -o postgres -m 700 {DATABASE} && cd /
runuser -u postgres -- {_postgres()}/initdb -D {DATABASE} --auth-local=peer --auth-host=scram-sha-256 --no-sync
printf "{settings}" >> {DATABASE}/postgresql.conf
runuser -u postgres -- {_postgres()}/pg_ctl -D {DATABASE} -l {DATABASE}/start.log -w start
"""
    for each in bed.network.hosts:
        output_on(bed, each.name, ("sh", "-ec", f"chmod +x {STAND_INS}/*; mkdir -p {CLIENT_CACHE}"))
    output_on(bed, host.name, ("sh", "-ec", script))


def _give_certificate(bed: Bed, host: Host) -> None:
    """Make a host's certificate, and put it where its services read it."""
    folder = FOLDER / "tls"
    names = (host.name, host.domain_name, host.address, "localhost", "127.0.0.1")
    roles = ("coordinator", "node") if host.coordinator else ("node",)
    certificate, *_ = make_certificates(folder, [names], datetime.now(UTC), roles=roles)
    for source, name in (
        (certificate, "host.pem"),
        (certificate.with_suffix(".key"), "host.key"),
        (folder / "authority.pem", "authority.pem"),
    ):
        line = ("install", "-m", "640", "-g", "qubic-tls", "/dev/stdin", f"{TLS}/{name}")
        output_on(bed, host.name, line, source.read_text())


def _make_token(bed: Bed, first: Host) -> str:
    """Make a token of a client, which all coordinators accept."""
    tokens = "/var/lib/qubic-lab/tokens.yaml"
    add = f"{CODE}/.venv/bin/python -m qubic_lab.cli.main token add testbed --per-minute 100000 --file {tokens}"
    script = f"mkdir -p /var/lib/qubic-lab && PYTHONPATH={CODE} {add} && chown -R qubic-lab: /var/lib/qubic-lab"
    return output_on(bed, first.name, ("sh", "-ec", script)).split()[-1]


def _share_settings(bed: Bed, first: Host, host: Host) -> None:
    """Give another coordinator the settings and the tokens of the first."""
    for path, owner in (("/etc/qubic-lab/coordinator.env", "root"), ("/var/lib/qubic-lab/tokens.yaml", "qubic-lab")):
        content = output_on(bed, first.name, ("cat", path))
        output_on(bed, host.name, ("install", "-o", owner, "-m", "600", "/dev/stdin", path), content)


def _set_node(bed: Bed, host: Host, spec: ClusterSpec) -> None:
    """Set what a host's node and rank run; where a coordinator has port 5000, the node's health page has none."""
    more = "" if host.coordinator else f" --health-port {SERVICES['health'].ports[0]}"
    if spec.kind == "pipeline":
        more += f" --pipeline {bed.network.hosts[0].address}:{SERVICES['pipeline'].ports[0]}"
    model = f"/opt/models/{spec.model.name}"
    _set(bed, host, "node", {"MODEL": model, "NODE_OPTIONS": spec.options + more})
    _set(bed, host, "pipeline", {"MODEL": model, "PIPELINE_OPTIONS": spec.options})
    _set(bed, host, "host", {"PYTHONPATH": CODE})


def _set(bed: Bed, host: Host, name: str, values: Mapping[str, str]) -> None:
    """Change values in a host's file of settings."""
    path = f"/etc/qubic-lab/{name}.env"
    lines = output_on(bed, host.name, ("cat", path)).splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in values]
    content = "\n".join([*kept, *(f"{key}={value}" for key, value in values.items())]) + "\n"
    output_on(bed, host.name, ("install", "-m", "600", "/dev/stdin", path), content)


def wait_until_open(bed: Bed, nodes: int, within_s: float = 300.0) -> None:
    """Wait until each coordinator may give tasks to that many nodes.

    Raises:
        QubicLabError: that takes too long; the message says what there is.
    """
    script = f"""
import json, sys, time
from qubic_lab.api.client import CoordinatorClient
from qubic_lab.errors import QubicLabError
deadline = time.monotonic() + {within_s}
for url in {urls(bed)!r}:
    while True:
        try:
            with CoordinatorClient(url, answer_s=5.0) as client:
                found = client.status().nodes
        except QubicLabError as error:
            found = {{"error": str(error)}}
        if found.get("open", 0) >= {nodes}:
            break
        if time.monotonic() > deadline:
            sys.exit(f"{{url}}: {{found}}")
        time.sleep(0.5)
"""
    try:
        output_on(bed, bed.network.hosts[0].name, ("python", "-c", script))
    except QubicLabError as error:
        raise QubicLabError(f"the cluster does not come up ({error}): its logs are in {FOLDER}/vm-*/log") from error


def save(spec: ClusterSpec) -> None:
    """Write what runs into the bed's folder."""
    (FOLDER / "cluster.json").write_bytes(codec(ClusterSpec).dump_json(spec))


def read() -> ClusterSpec:
    """Return what runs in the bed; an InputError if nothing does."""
    try:
        return codec(ClusterSpec).validate_json((FOLDER / "cluster.json").read_bytes())
    except OSError as error:
        raise InputError("no cluster runs in the test bed: qubic-lab testbed up --cluster replicas") from error
