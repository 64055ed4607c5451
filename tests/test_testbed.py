"""The test bed: units read as systemd reads them, the plan's firewall, and real hosts where root runs the tests."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from clusters import wait_until
from commands import Run
from models import tiny_model

from qubic_lab.errors import InputError
from qubic_lab.launch_plan.network import Network
from qubic_lab.testbed import bed, cluster, network, trial
from qubic_lab.testbed.measure import measure_link
from qubic_lab.testbed.network import Shape, read_rate
from qubic_lab.testbed.scan import Difference, State, differences, scan_bed
from qubic_lab.testbed.units import Command, in_order, read_unit, unit_texts

ROOT = Path(__file__).parents[1]
UNIT = """
[Unit]
After=redis-server.service network-online.target

[Service]
User=qubic-lab
EnvironmentFile=/etc/qubic-lab/host.env
Environment=CACHE=/var/cache/%p "WORDS=two words"
ExecStart=/opt/lab --listen ${ADDRESS}:5000 \\
  --name %H $WORDS ${WORDS}
RuntimeDirectory=lab
StateDirectory=lab/one
TimeoutStopSec=1min 15s
"""
DROP_IN = """
[Service]
ExecStart=
ExecStart=-/bin/other $OPTIONS
Restart=always
RestartSec=500ms
"""


def test_a_unit_runs_what_systemd_would_run() -> None:
    files = {"/etc/qubic-lab/host.env": "# of this host\nADDRESS=10.0.0.10\nQUOTED='a b'\n"}
    unit = read_unit("qubic-node", [UNIT], "vm-1", files)
    assert unit.commands == (
        Command(("/opt/lab", "--listen", "10.0.0.10:5000", "--name", "vm-1", "two", "words", "two words")),
    )
    assert unit.environment["CACHE"] == "/var/cache/qubic-node"
    assert unit.environment["QUOTED"] == "a b"
    assert (unit.user, unit.stop_s, unit.restarts) == ("qubic-lab", 75.0, False)
    assert unit.folders == ("/run/lab", "/var/lib/lab/one")
    changed = read_unit("qubic-node", [UNIT, DROP_IN], "vm-1", files)
    assert changed.commands == (Command(("/bin/other",), may_fail=True),)
    assert (changed.restarts, changed.pause_s) == (True, 0.5)


def test_a_unit_without_its_secrets_does_not_start() -> None:
    with pytest.raises(InputError, match=r"lab\.service needs /etc/qubic-lab/host\.env, which is missing on vm-2"):
        read_unit("lab", [UNIT], "vm-2", {})


def test_drop_ins_of_a_prefix_and_of_a_template_count(tmp_path: Path) -> None:
    (tmp_path / "qubic-node@.service").write_text("[Service]\nExecStart=/bin/x %i\nUser=a\n")
    for name, user in (("qubic-", "b"), ("qubic-node@", "c")):
        (tmp_path / f"{name}.service.d").mkdir()
        (tmp_path / f"{name}.service.d" / "own.conf").write_text(f"[Service]\nUser={user}\n")
    unit = read_unit("qubic-node@two", unit_texts([tmp_path], "qubic-node@two"), "vm-1", {})
    assert (unit.commands, unit.user) == ((Command(("/bin/x", "two")),), "c")


def test_units_start_in_their_order() -> None:
    texts = {"b": "[Unit]\nAfter=a.service\n", "a": "[Unit]\nAfter=elsewhere.service\n"}
    units = [read_unit(name, [text, "[Service]\nExecStart=/bin/x\n"], "vm-1", {}) for name, text in texts.items()]
    assert [unit.name for unit in in_order(units)] == ["a", "b"]


def test_the_firewall_of_a_host_is_that_of_the_plan() -> None:
    plan = Network(3, ssh_from="203.0.113.9")
    first, second = plan.host("vm-1"), plan.host("vm-2")
    accepted = [line for line in network.firewall(plan, first).splitlines() if "tcp dport" in line]
    assert [line.rpartition("comment ")[2] for line in accepted] == ['"allow-internal-qubic-ai"', '"allow-ssh-access"']
    assert "ip saddr { 203.0.113.9/32 } tcp dport { 22 }" in accepted[1]
    assert "allow-ssh-access" not in network.firewall(plan, second)


def test_a_scan_differs_where_a_port_is_open_or_answers_unplanned() -> None:
    found: dict[int, State] = {22: "open", 25: "open", 5000: "closed", 7000: "closed"}
    wrong = differences("vm-2", "vm-1", [22, 25, 5000, 7000, 8000], found, {22, 25, 5000}, {22, 5000})
    assert wrong == [
        Difference("vm-2", "vm-1", 25, "open", "closed"),
        Difference("vm-2", "vm-1", 7000, "closed", "no answer"),
    ]


def test_an_answer_is_lost_wrong_or_doubled() -> None:
    right = {"text": "a", "token_ids": [1], "logprobs": [-0.5]}
    said = {"tries": 2, "troubles": ["busy"], "seconds": 1.0, "attempts": 2, "node": "vm-1"}
    answers = [{"number": 0, **said, **right}, {"number": 1, **said, **right, "logprobs": [-0.25]}]
    answers.append({"number": 2, "tries": 3, "troubles": [], "seconds": 9.0})
    result = trial.judge([right] * 3, answers, {"submitted": 4, "completed": 2, "changed": 0})
    assert (result.lost, result.wrong, result.duplicated, result.good) == (1, 1, 1, False)
    assert (result.resumed, result.repeated, result.by_node, result.troubles) == (2, 4, {"vm-1": 2}, {"busy": 2})


@pytest.mark.parametrize(("text", "bps"), [("100mbit", 1e8), ("1.5 Gbit/s", 1.5e9), ("64kbit", 64e3)])
def test_a_rate_is_read(text: str, bps: float) -> None:
    assert read_rate(text) == bps


def test_a_rate_without_its_unit_is_refused() -> None:
    with pytest.raises(InputError, match=r"--rate is '100': give bits/s, such as 100mbit"):
        read_rate("100")


def test_without_root_there_is_one_line(here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert here("testbed up").failed(2) == ("error: a test bed needs root, for network namespaces: run it with sudo\n")


@pytest.fixture(scope="module")
def two_hosts() -> Iterator[bed.Bed]:
    """A test bed of two machines, with 20 ms between them."""
    if why := bed.why_not() or (f"{bed.FOLDER} is in use" if bed.FOLDER.exists() else ""):
        pytest.skip(why)
    try:
        yield bed.up(Network(2), Shape(delay_ms=20.0))
    finally:
        bed.down()


def on(made: bed.Bed, host: str, *command: str) -> subprocess.CompletedProcess[str]:
    line, environment = bed.command_on(made, host, command)
    return subprocess.run(line, env=environment, capture_output=True, text=True, check=False)


KNOCK = """
import socket, sys, time
tried = socket.socket()
tried.settimeout(1.0)
started = time.perf_counter()
try:
    tried.connect((sys.argv[1], 22))
except ConnectionRefusedError:  # the firewall lets it through, and nobody listens
    print((time.perf_counter() - started) * 1e3)
"""


def round_trip_ms(made: bed.Bed, source: str, target: str) -> float | None:
    """Return how long an answer of a host's kernel takes, or None if nothing comes back."""
    done = on(made, source, sys.executable, "-ISc", KNOCK, target)
    return float(done.stdout) if done.stdout else None


def test_hosts_have_names_delays_and_disks_of_their_own(two_hosts: bed.Bed) -> None:
    found = round_trip_ms(two_hosts, "vm-1", "vm-2.qubic-ai.internal")
    assert found is not None
    assert found >= 20.0
    assert on(two_hosts, "vm-2", "hostname").stdout == "vm-2\n"
    assert on(two_hosts, "vm-2", "sh", "-c", "echo of vm-2 > /etc/own; ps -e | wc -l").returncode == 0
    assert not Path("/etc/own").exists()
    assert on(two_hosts, "vm-1", "cat", "/etc/own").returncode != 0
    assert on(two_hosts, "vm-2", "sh", "-c", "exit 7").returncode == 7
    bed.reboot(two_hosts, "vm-2")
    assert on(two_hosts, "vm-2", "cat", "/etc/own").stdout == "of vm-2\n"


def test_the_firewall_lets_in_what_the_plan_says(two_hosts: bed.Bed, here: Run) -> None:
    python = f"{sys.executable} -m http.server"
    line, environment = bed.command_on(two_hosts, "vm-1", ["sh", "-c", f"{python} 5000 & {python} 8080"])
    servers = subprocess.Popen(line, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: {5000, 8080} <= bed.listening("vm-1"))
        found = here("testbed scan --json").json
    finally:
        servers.terminate()
        servers.wait()
    assert found["wrong"] == []
    assert found["open"]["vm-1"] == {"vm-2": [5000], "outside": []}


def test_the_doctor_finds_a_path_that_loses_large_packets(two_hosts: bed.Bed) -> None:
    def looked() -> list[dict[str, str]]:
        line = [sys.executable, "-m", "qubic_lab.cli.main", "doctor", "--role", "node", "--nodes", "2"]
        done = on(two_hosts, "vm-2", "env", f"PYTHONPATH={ROOT}", *line, "--only", "network", "--json")
        found = json.loads(done.stdout)["findings"]
        return [each for each in found if each["looked_at"].startswith("packets")]

    assert [(each["verdict"], each["value"]) for each in looked()] == [("ok", "1500 bytes arrive, as many as are sent")]
    for port in ("vm-1", "vm-2"):
        subprocess.run(["ip", "-n", network.BRIDGE, "link", "set", port, "mtu", "1400"], check=True)
    (bad,) = looked()
    assert (bad["verdict"], bad["value"]) == ("fail", "up to 1400 bytes arrive")
    assert bad["remedy"] == "ip route replace 10.0.0.10 dev eth0 mtu 1400"
    assert on(two_hosts, "vm-2", *bad["remedy"].split()).returncode == 0
    assert [(each["verdict"], each["value"]) for each in looked()] == [("ok", "1400 bytes arrive, as many as are sent")]


def test_a_cut_host_is_silent_until_its_cable_is_back(two_hosts: bed.Bed) -> None:
    with bed.cut(two_hosts, "vm-2"):
        assert round_trip_ms(two_hosts, "vm-1", "10.0.0.20") is None
    wait_until(lambda: round_trip_ms(two_hosts, "vm-1", "10.0.0.20") is not None)


def test_a_second_bed_is_refused_and_down_leaves_nothing(two_hosts: bed.Bed, here: Run) -> None:
    assert here("testbed up").failed(2) == (
        "error: a test bed is there: vm-1, vm-2, outside with unlimited bandwidth, 20 ms added to a round trip; end it "
        "with qubic-lab testbed down\n"
    )
    assert here("testbed down").out == "ended the test bed\n"
    assert not bed.FOLDER.exists()
    assert not any((bed.NAMESPACES / name).exists() for name in network.namespaces(two_hosts.network))
    left = subprocess.run(["pgrep", "-f", "qubic_lab.testbed"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
    assert here("testbed status").failed(2) == "error: no test bed is up: qubic-lab testbed up\n"


VOTE = """
import json
from qubic_lab.api.client import CoordinatorClient
with CoordinatorClient("https://10.0.0.20:5000") as second, CoordinatorClient("https://10.0.0.10:5000") as first:
    vote = second.vote("Is 7 prime?", max_new_tokens=4)
    shown = [client.call("GET", "/api/consensus/history")["votes"] for client in (first, second)]
print(json.dumps([vote.vote_id in [each["id"] for each in votes] for votes in shown]))
"""


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("kind", cluster.KINDS)
def test_no_answer_is_lost_wrong_or_doubled_while_hosts_go(kind: str, tmp_path: Path, two_hosts: bed.Bed) -> None:
    """A cable is out for 20 s and a host reboots; the fixture skips where no test bed can be."""
    bed.down()
    spec = cluster.ClusterSpec(kind, tiny_model(tmp_path / "tiny", num_hidden_layers=6))
    three = Network(3, coordinators=cluster.COORDINATORS)
    try:
        cluster.check(three, spec)
    except InputError as error:
        pytest.skip(str(error))
    made = bed.up(three, Shape())
    try:
        cluster.start(made, spec)
        assert scan_bed(made).wrong == []
        assert json.loads(bed.output_on(made, "vm-3", ["python", "-"], VOTE)) == [True, True]
        result = trial.run(made, spec, trial.TrialPlan(tokens=128, cut="vm-2", reboot="vm-3"), print)
    finally:
        bed.down()
    assert (result.lost, result.wrong, result.duplicated, result.asked) == (0, 0, 0, 200)
    assert result.resumed or result.repeated  # what happened was noticed


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "delay_ms"), [(0.0, 0.0), (0.0, 20.0), (1e8, 0.0), (1e8, 20.0)])
def test_what_a_meter_measures_is_what_was_set(rate: float, delay_ms: float, two_hosts: bed.Bed) -> None:
    bed.down()
    made = bed.up(Network(2), Shape(rate, delay_ms))
    try:
        link = measure_link(made, "vm-1", "vm-2")
    finally:
        bed.down()
    assert delay_ms <= link.rtt_min_ms < delay_ms + 2.0
    if rate:
        assert link.gbps == pytest.approx(rate / 1e9, rel=0.1)
