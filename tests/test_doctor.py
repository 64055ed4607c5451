"""The doctor finds what is wrong with a machine that was made ill; its remedy, run as it was printed, mends it."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from clusters import wait_until
from commands import Run
from databases import migrate

from qubic_lab.cluster.redis_server import connect, embedded_binary
from qubic_lab.database import open_database
from qubic_lab.doctor import examination, graphics, machine, services, subject
from qubic_lab.doctor.finding import Finding
from qubic_lab.doctor.graphics import parse_cards, runs_on
from qubic_lab.doctor.subject import Subject, subject_of, variables_of
from qubic_lab.errors import NotFoundError, QubicLabError
from qubic_lab.launch_plan.network import SERVICES
from qubic_lab.model.split import split_checkpoint
from qubic_lab.wire.certificates import make_certificates

ROOT = Path(__file__).parent.parent
T4 = """
if len(sys.argv) > 1:
    print("Tesla T4, 535.183.01, 7.5, 15360")
else:
    print("| NVIDIA-SMI 535.183.01   Driver Version: 535.183.01   CUDA Version: 12.2 |")
"""
SHIFTED = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <unistd.h>
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int (*real)(struct timeval *, void *) = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    if (access(getenv("MENDED"), F_OK) != 0) now->tv_sec -= 5;
    return result;
}
"""


@pytest.fixture(autouse=True)
def ward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_settings: Callable[..., None], no_tls: None
) -> Iterator[Path]:
    """A folder with nothing but what a test puts there, and a first folder of PATH for programs of its own."""
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    set_settings(cache=tmp_path / "cache", data=tmp_path / "data", database_url=None, redis_url=None, api_tokens=None)
    return tmp_path


def program(name: str, code: str) -> Path:
    """Put a program in Python on PATH."""
    file = Path("bin", name).absolute()
    file.write_text(f"#!{sys.executable}\nimport os, subprocess, sys\n{code}\n")
    file.chmod(0o755)
    return file


@pytest.fixture
def sudo() -> None:
    """Let a remedy for an administrator run as the user of the tests."""
    program("sudo", "os.execvp(sys.argv[1], sys.argv[1:])")


@pytest.fixture
def look(here: Run) -> Callable[..., list[dict[str, Any]]]:
    """Run checks, and return what they found."""

    def look_(only: str, options: str = "") -> list[dict[str, Any]]:
        ended = here(f"doctor --json --only {only} {options}")
        found = json.loads(ended.out)
        assert ended.status == (0 if found["healthy"] else 1)
        return found["findings"]

    return look_


@pytest.fixture
def cure(here: Run) -> Callable[[str], None]:
    """Run a remedy as it was printed."""

    def cure_(remedy: str) -> None:
        if remedy.startswith("qubic-lab "):
            assert here(remedy.removeprefix("qubic-lab ")).status == 0
        else:
            subprocess.run(remedy, shell=True, check=True, stdout=subprocess.DEVNULL)

    return cure_


def ill(findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for each in findings if each["verdict"] in ("warn", "fail")]


def only_fault(findings: list[dict[str, Any]], reason: str) -> str:
    """Return the remedy of the one fault, whose reason contains a text."""
    (fault,) = ill(findings)
    assert fault["verdict"] == "fail"
    assert reason in f"{fault['value']}: {fault['reason']}"
    return fault["remedy"]


def apart(line: str, *before: str, **environment: str) -> dict[str, Any]:
    """Run a command in a process of its own, perhaps begun by other words, and return its object."""
    words = [*before, sys.executable, "-m", "qubic_lab.cli.main", *line.split()]
    environment = {"PYTHONPATH": str(ROOT)} | environment
    ended = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    return json.loads(ended.stdout)


def test_a_card_without_a_driver(ward: Path, monkeypatch: pytest.MonkeyPatch, sudo: None, look: Any, cure: Any) -> None:
    device = ward / "pci" / "0000:00:04.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    monkeypatch.setattr(graphics, "PCI", ward / "pci")
    monkeypatch.setenv("PATH", str(ward / "bin"))
    write = f"open('bin/nvidia-smi', 'w').write({f'#!{sys.executable}{chr(10)}import sys{T4}'!r})"
    program(
        "ubuntu-drivers", f"assert sys.argv[1:] == ['install', '--gpgpu']\n{write}\nos.chmod('bin/nvidia-smi', 0o755)"
    )
    remedy = only_fault(look("driver"), "a card of NVIDIA is on the PCI bus (1), and nvidia-smi is missing")
    cure(remedy)
    assert [each["value"] for each in look("driver")] == ["535.183.01: Tesla T4 (15 GiB)"]


def test_a_build_of_torch_that_cannot_use_the_card(
    ward: Path, monkeypatch: pytest.MonkeyPatch, look: Any, cure: Any
) -> None:
    if machine.torch_build()[1]:
        pytest.skip("torch is built for CUDA here")
    program("nvidia-smi", T4)
    remedy = only_fault(look("cuda,torch"), "this build has no CUDA, and the machine has Tesla T4")
    assert "https://download.pytorch.org/whl/cu126" in remedy
    wheel("torch", "9.9", "__version__ = '9.9+cu126'\ncuda: str | None = '12.6'\n", STANDING_IN)
    # pip takes what is here, and puts it here, whatever index it is told
    pip = {"NO_INDEX": "1", "FIND_LINKS": str(ward), "TARGET": str(ward / "site"), "CONFIG_FILE": os.devnull}
    for name, value in pip.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)
    cure(remedy)
    found = apart("doctor --json --only cuda,torch", PYTHONPATH=f"{ward / 'site'}:{ROOT}")["findings"]
    assert [each["value"] for each in found] == ["12.2 of the driver, 12.6 of torch", "9.9+cu126: sm_75, sm_90"]


STANDING_IN = """
class cuda:
    is_available = lambda: True
    get_arch_list = lambda: ["sm_75", "sm_90"]
"""


def wheel(name: str, number: str, about: str, code: str) -> None:
    """Write a wheel of a module with a version.py."""
    info = f"{name}-{number}.dist-info"
    files = {
        f"{name}/__init__.py": code,
        f"{name}/version.py": about,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content.encode()).digest()).decode().rstrip("=")
        record += f"{path},sha256={digest},{len(content)}\n"
    with zipfile.ZipFile(f"{name}-{number}-py3-none-any.whl", "w") as archive:
        for path, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, content)


def test_a_full_disk(ward: Path, set_settings: Callable[..., None], look: Any, cure: Any) -> None:
    small = ward / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1200m", "none", small], check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        set_settings(cache=small / "cache")
        (small / "cache" / "kernels").mkdir(parents=True)
        with (small / "cache" / "kernels" / "decoder-0123456789abcdef.so").open("wb") as old:
            os.posix_fallocate(old.fileno(), 0, 300 * 2**20)
        (fault,) = [each for each in look("disk") if each["verdict"] == "fail"]
        assert "less than 1 GiB is free; 0.29 GiB of the cache are of no more use" in fault["reason"]
        cure(fault["remedy"])
        assert all(each["verdict"] != "fail" for each in look("disk"))
        assert list((small / "cache" / "kernels").iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_another_coordinator_uses_the_services_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {each.name for each in subject_of("coordinator", "vm-2", 3).services} >= {"coordinator", "registry"}
    assert not {"redis", "postgres"} & {each.name for each in subject_of("coordinator", "vm-2", 3).services}
    held = {"eth0": [SimpleNamespace(address="10.0.0.20")]}
    monkeypatch.setattr("qubic_lab.doctor.subject.psutil.net_if_addrs", lambda: held)
    for role in ("coordinator", "node"):
        host = subject_of(role, None, 3).host
        assert host is not None and host.name == "vm-2"


LISTENS = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"


@contextmanager
def listener(*words: str) -> "Iterator[tuple[subprocess.Popen[str], int]]":
    """Run a program that listens, with these words on its command line; give its process and port."""
    command = [sys.executable, "-c", LISTENS, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def test_torchruns_store_belongs_to_the_pipeline(monkeypatch: pytest.MonkeyPatch, look: Any) -> None:
    with listener("--nnodes=3", "--node-rank=0", "-m", "qubic_lab.pipeline.rank") as (_, port):
        monkeypatch.setitem(SERVICES, "store", replace(SERVICES["store"], ports=(port, port)))
        *_, summary = look("ports", "--role coordinator")
    assert str(port) in summary["value"].partition("ours: ")[2]


def test_a_port_that_another_program_has_taken(monkeypatch: pytest.MonkeyPatch, look: Any, cure: Any) -> None:
    with listener() as (other, port):
        monkeypatch.setitem(SERVICES, "coordinator", replace(SERVICES["coordinator"], ports=(port, port)))
        (fault,) = [each for each in look("ports", "--role coordinator") if each["looked_at"] == f"port {port}"]
        assert (fault["verdict"], fault["value"]) == ("fail", "taken")
        assert f"(process {other.pid}) listens there: it is for coordinator: HTTP and /health" in fault["reason"]
        cure(fault["remedy"])
        other.wait()
    *_, summary = look("ports", "--role coordinator")
    assert str(port) in summary["value"].partition(";")[0]


@pytest.fixture
def start_redis(ward: Path, set_settings: Callable[..., None]) -> Iterator[Callable[..., str]]:
    """Return a function that starts a server of Redis's protocol on a free port, and returns its URL."""
    running: list[subprocess.Popen[bytes]] = []

    def start(*options: str, **environment: str) -> str:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        words = [str(embedded_binary()), "--port", str(port), "--dir", str(ward), "--save", "", *options]
        running.append(subprocess.Popen(words, env=os.environ | environment, stdout=subprocess.DEVNULL))
        url = f"redis://127.0.0.1:{port}"
        wait_until(lambda: listens(port))
        set_settings(redis_url=url)
        return url

    yield start
    for each in running:
        each.kill()
        each.wait()


def listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_a_clock_that_is_five_seconds_off(ward: Path, start_redis: Any, sudo: None, look: Any, cure: Any) -> None:
    source, library = ward / "shifted.c", ward / "shifted.so"
    source.write_text(SHIFTED)
    compiler = machine.compiler()
    if compiler is None:
        pytest.skip("no compiler is installed here")
    subprocess.run([*compiler, "-x", "c", "-shared", "-fPIC", source, "-o", library, "-ldl"], check=True)
    start_redis(LD_PRELOAD=str(library), MENDED=str(ward / "mended"))
    program("chronyc", "assert sys.argv[1:] == ['makestep']; open('mended', 'w')")
    (fault,) = look("clock")
    assert fault["verdict"] == "fail"
    assert 4.5 < float(fault["value"].partition(" s")[0]) < 5.5
    cure(fault["remedy"])
    (mended,) = look("clock")
    assert mended["verdict"] == "ok"


def test_hosts_without_names(ward: Path) -> None:
    hosts = ward / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    (ward / "nsswitch").write_text("hosts: files\n")
    bind = f"mount --bind {hosts} /etc/hosts && mount --bind {ward}/nsswitch /etc/nsswitch.conf"
    before = ("unshare", "--mount", "sh", "-c", f'{bind} && exec "$@"', "-")
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root can give a process its own /etc/hosts")
    line = "doctor --json --role node --only dns --nodes 2"
    faults = ill(apart(line, *before)["findings"])
    assert [each["looked_at"] for each in faults] == ["vm-1.qubic-ai.internal", "vm-2.qubic-ai.internal"]
    assert all("no address" in each["reason"] for each in faults)
    for each in faults:
        subprocess.run([*before, "sh", "-c", each["remedy"]], check=True, stdout=subprocess.DEVNULL)
    assert [each["value"] for each in apart(line, *before)["findings"]] == ["10.0.0.10", "10.0.0.20"]


def test_redis_that_asks_for_no_password(
    start_redis: Any, set_settings: Callable[..., None], look: Any, cure: Any
) -> None:
    url = start_redis("--appendonly", "yes")
    assert ill(look("redis")) == []  # it serves this host alone
    with_password = url.replace("//", "//:secret-of-the-cluster@")
    set_settings(redis_url=with_password)
    remedy = only_fault(look("redis"), "none is asked for: the URL has one")
    cure(remedy)
    assert ill(found := look("redis")) == []
    assert "is asked for" in [each["value"] for each in found]
    assert "secret" not in json.dumps(found) + remedy
    with pytest.raises(QubicLabError, match="check user and password in the URL"):
        connect(url)


def test_redis_that_anybody_in_the_network_may_use_gets_a_user_with_a_password(
    ward: Path, start_redis: Any, set_settings: Any, monkeypatch: pytest.MonkeyPatch, look: Any
) -> None:
    url = start_redis("--bind", "0.0.0.0", "--protected-mode", "no", "--maxmemory-policy", "allkeys-lru")
    monkeypatch.delenv("QUBIC_LAB_REDIS_URL")
    (ward / ".env").write_text(f"QUBIC_LAB_REDIS_URL={url}\n")
    (ward / ".env").chmod(0o600)
    password, keeps = ill(look("redis"))
    assert "it listens at 0.0.0.0: anybody who reaches it may read and change the queue" in password["reason"]
    assert keeps["value"] == "append-only file off, allkeys-lru"
    own = program("qubic-lab", "from qubic_lab.cli.main import main; main()")
    environment = {"PYTHONPATH": str(ROOT), "PATH": f"{own.parent}:{os.environ['PATH']}"}
    subprocess.run(password["remedy"], shell=True, check=True, env=os.environ | environment, capture_output=True)
    set_settings()
    assert ill(look("redis")) == []
    assert (ward / ".env").read_text().count("QUBIC_LAB_REDIS_URL=redis://:") == 1


def test_redis_that_does_not_answer(
    ward: Path, start_redis: Any, set_settings: Callable[..., None], sudo: None, look: Any, cure: Any
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    set_settings(redis_url=f"redis://127.0.0.1:{port}")
    words = [str(embedded_binary()), "--port", str(port), "--dir", str(ward), "--appendonly", "yes"]
    start = f"assert sys.argv[1:] == ['start', 'redis-server']\nsubprocess.run({[*words, '--daemonize', 'yes']})"
    program("systemctl", start)
    remedy = only_fault(look("redis"), "does not answer")
    cure(remedy)
    wait_until(lambda: listens(port))
    try:
        assert ill(look("redis")) == []
    finally:
        with connect(f"redis://127.0.0.1:{port}") as client:
            client.shutdown(nosave=True)


@pytest.mark.parametrize(
    ("where", "start"),
    [("127.0.0.1", "systemctl start postgresql"), ("localhost.", "ssh localhost. sudo systemctl start postgresql")],
)
def test_a_database_server_that_does_not_answer(
    ward: Path, set_settings: Callable[..., None], look: Any, where: str, start: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    set_settings(database_url=f"postgresql://lab@{where}:{port}/lab")
    remedy = only_fault(look("database", "--role coordinator --host vm-2"), "not usable")
    assert remedy.removeprefix("sudo ") == start


def test_a_database_behind_in_migrations(ward: Path, set_settings: Callable[..., None], look: Any, cure: Any) -> None:
    set_settings(database_url=f"sqlite:///{ward / 'lab.db'}")
    engine = open_database()
    migrate(engine, "0005")
    engine.dispose()
    remedy = only_fault(look("database"), "2 migrations behind")
    cure(remedy)
    assert {each["value"] for each in look("database")} == {
        "tables of this version",
        "not made yet: its first use makes it",
    }


def test_an_expired_certificate(ward: Path, set_settings: Callable[..., None], look: Any, cure: Any) -> None:
    names = ["vm-2", "10.0.0.20", "vm-2.qubic-ai.internal"]
    make_certificates(ward / "tls", [names], datetime.now(UTC) - timedelta(days=400), roles=["node"])
    files = {"certificate": "vm-2.pem", "key": "vm-2.key", "authority": "authority.pem"}
    set_settings(**{f"tls_{name}": ward / "tls" / file for name, file in files.items()})
    as_node = "--role node --host vm-2"
    remedy = only_fault(look("certificates", as_node), "the certificate of vm-2, 10.0.0.20")
    cure(remedy)
    assert ill(look("certificates", as_node)) == []
    (ward / "tls" / "authority.key").rename(ward / "elsewhere.key")
    make_certificates(ward / "other", [names], datetime.now(UTC))
    set_settings(tls_authority=ward / "other" / "authority.pem")
    only_fault(look("certificates", as_node), "another authority signed it")


def test_a_flipped_bit_in_a_shard(ward: Path, tiny: Path, look: Any, cure: Any) -> None:
    split_checkpoint(tiny, ward / "parts", (2, 2), "C")
    options = f"--model parts --source {tiny}"
    assert ill(look("model", options)) == []
    with (ward / "parts" / "rank-1" / "model.safetensors").open("r+b") as shard:
        shard.seek(-1, os.SEEK_END)
        last = shard.read(1)[0]
        shard.seek(-1, os.SEEK_END)
        shard.write(bytes([last ^ 1]))
    remedy = only_fault(look("model", options), "rank-1/model.safetensors has changed")
    assert only_fault(look("model", "--model parts"), "").endswith("--model parts --source MODEL")
    fetch = "rm -r parts/rank-1 && qubic-lab model fetch parts parts --rank 1"
    assert only_fault(look("model", "--model parts --role node"), "") == fetch
    cure(remedy)
    assert ill(look("model", options)) == []
    assert sorted(path.name for path in (ward / "parts").iterdir()) == ["rank-0", "rank-1"]


def test_a_model_that_memory_is_too_small_for(ward: Path, tiny: Path, look: Any) -> None:
    shape = json.loads((tiny / "config.json").read_text())
    shape |= {"hidden_size": 4_096, "intermediate_size": 16_384, "head_dim": 64, "num_attention_heads": 64}
    a_layer_bytes = 2 * (3 * 4_096 * 16_384 + 2 * 4_096**2)
    fits = int(machine.available_bytes() * 0.7 / a_layer_bytes)
    (ward / "large").mkdir()
    (ward / "large" / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": fits}))
    remedy = only_fault(look("memory", "--model large --dtype fp32"), "it does not fit; with these settings it does")
    start, _, options = remedy.partition("--model ")
    assert start == "qubic-lab serve "
    assert ill(look("memory", f"--model {options}")) == []
    (ward / "large" / "config.json").write_text(json.dumps(shape | {"num_hidden_layers": 3 * fits}))
    remedy = only_fault(look("memory", "--model large"), "it does not fit on one machine of this size")
    assert remedy.startswith("qubic-lab split --model large --ranks 3 ")


def test_a_healthy_machine_is_green(tiny: Path, here: Run) -> None:
    ended = here(f"doctor --json --model {tiny}")
    found = json.loads(ended.out)
    # Room on the disk and ports of others are the machine's own.
    assert [each for each in ill(found["findings"]) if each["check"] not in ("disk", "ports")] == []
    assert {each["check"] for each in found["findings"]} == set(examination.CHECKS)
    assert all(each["reason"] for each in found["findings"] if each["verdict"] == "skip")


def test_its_output_is_plain_in_a_pipe_and_has_the_remedy_below_the_fault(
    ward: Path, set_settings: Callable[..., None], here: Run
) -> None:
    set_settings(database_url=f"sqlite:///{ward}/gone/lab.db", ledger_url=f"sqlite:///{ward}/ledger.db")
    ended = here("doctor --only dns,database")
    assert ended.status == 1
    assert ended.out == (
        "skip  dns       host names: no other host is named by the settings\n"
        f"fail  database  QUBIC_LAB_DATABASE_URL: not usable: folder {ward}/gone of database lab.db does not exist: "
        f"make it, or mend QUBIC_LAB_DATABASE_URL\n"
        f"                $ mkdir -p {ward}/gone\n"
        f"ok    database  sqlite:///{ward}/ledger.db: not made yet: its first use makes it\n"
    )
    assert "1 ok, 1 failed, 1 not applicable or not measured, in " in ended.err
    assert ended.err.endswith(f"error: 1 of 3 failed; first: mkdir -p {ward}/gone\n")


def test_a_new_users_missing_cache_is_no_fault(ward: Path, set_settings: Callable[..., None], here: Run) -> None:
    set_settings(cache=ward / "cache", data=ward / "data")
    ended = here("doctor --only database")
    assert (ended.status, ended.out.count(": not made yet: its first use makes it\n")) == (0, 2)


def test_a_unit_that_does_not_start_with_the_machine(
    ward: Path, monkeypatch: pytest.MonkeyPatch, sudo: None, look: Any, cure: Any
) -> None:
    monkeypatch.setattr(services, "SYSTEMD", ward)
    answers = "{'is-enabled': 'enabled' if os.path.exists('on') else 'disabled', 'is-active': 'active'}"
    program("systemctl", f"open('on', 'w') if sys.argv[1] == 'enable' else print({answers}[sys.argv[1]])")
    remedy = only_fault(look("units", "--role node"), "disabled, active: it must run, and start with the machine")
    cure(remedy)
    assert ill(look("units", "--role node")) == []


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("doctor --only redsi", "unknown check 'redsi': did you mean 'redis'?"),
        ("doctor --role nod", "unknown role 'nod': did you mean 'node'?"),
        ("doctor --role node --host vm-9", "no machine 'vm-9': did you mean 'vm-"),
    ],
)
def test_unknown_names_are_refused_with_a_suggestion(here: Run, line: str, error: str) -> None:
    ended = here(line)
    assert ended.status in (1, 2)
    assert error in ended.err


def test_a_check_that_hangs_or_fails_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()

    def hangs(subject: Subject) -> Iterator[Finding]:
        yield Finding("first", "seen")
        ends.wait()

    def fails(subject: Subject) -> Iterator[Finding]:
        raise ValueError("no number")
        yield

    monkeypatch.setattr(examination, "LIMIT_S", 0.2)
    monkeypatch.setattr(examination, "CHECKS", {"hangs": hangs, "fails": fails})
    seen, late, failed = examination.examine(Subject(), ("hangs", "fails"))
    ends.set()
    assert (seen.verdict, late.verdict, late.reason) == ("ok", "skip", "not measured within 0.2 s")
    assert (failed.verdict, failed.reason) == ("fail", "ValueError('no number')")


@pytest.mark.parametrize(
    ("architectures", "capability", "expected"),
    [
        (["sm_75", "sm_80"], "7.5", True),
        (["sm_80", "sm_90"], "7.5", False),
        (["sm_80"], "8.6", True),
        (["sm_86"], "8.0", False),
        (["sm_90"], "10.0", False),
        (["compute_90"], "10.0", True),
        ([], "7.5", False),
    ],
)
def test_which_cards_a_build_runs_on(architectures: list[str], capability: str, expected: bool) -> None:
    assert runs_on(architectures, capability) is expected


def test_what_the_driver_tells_of_cards_is_read() -> None:
    (card,) = parse_cards("Tesla T4, 535.183.01, 7.5, 15360\n")
    assert (card.name, card.capability, card.total_bytes) == ("Tesla T4", "7.5", 15 * 2**30)
    with pytest.raises(ValueError, match="unpack"):
        parse_cards("No devices were found\n")


def test_a_role_is_examined_with_the_settings_of_its_unit(ward: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "OF_SERVICES", ward)
    (ward / "host.env").write_text("# of all\nQUBIC_LAB_CLUSTER_NETWORK=10.0.0.0/24\n")
    (ward / "node.env").write_text("MODEL=deepseek\nQUBIC_LAB_CACHE=/elsewhere\n")
    found = variables_of("node")
    assert (found["MODEL"], found["QUBIC_LAB_DATA"]) == ("deepseek", "/var/lib/qubic-node")
    assert (found["QUBIC_LAB_CACHE"], found["QUBIC_LAB_CLUSTER_NETWORK"]) == ("/elsewhere", "10.0.0.0/24")
    assert variables_of("workbench") == {}


def test_the_host_of_a_role_is_that_of_the_plan() -> None:
    assert [subject_of(role, None, 3).host.name for role in ("coordinator", "node")] == ["vm-1", "vm-2"]  # type: ignore[union-attr]
    assert subject_of("node", "10.0.0.30", 3).host.name == "vm-3"  # type: ignore[union-attr]
    with pytest.raises(NotFoundError):
        subject_of("node", "vm-3", 2)
