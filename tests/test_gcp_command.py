"""`qubic-lab gcp`: what it shows without an account, and what it does with Pulumi, of which a stand-in answers here."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from clusters import wait_until
from commands import Run

ME = "--set ssh_from=203.0.113.7"
UP = f"gcp up {ME} --set provisioning=spot --yes"


@pytest.fixture
def pulumi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_settings: Callable[..., None]) -> Path:
    """Put the stand-in on the PATH; return the folder of Pulumi's project."""
    set_settings(data=tmp_path / "data", peers=tmp_path / "peers", cache=tmp_path / "cache")
    for folder in ("bin", "peers/pulumi/bin"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "peers/pulumi/bin/python").symlink_to(sys.executable)
    command = tmp_path / "bin" / "pulumi"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).with_name("fake_pulumi.py")}" "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("PULUMI_BACKEND_URL", "PULUMI_CONFIG_PASSPHRASE", "FAKE_PULUMI"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "data" / "gcp"


def test_plan_names_every_open_port_in_one_table(here: Run):
    ended = here(f"gcp plan {ME}")
    assert ended.status == 0
    table = ended.out.partition("Open ports")[2].partition("\n\n")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert {row[0]: row[2] for row in rows if row[1].startswith("vm-1")} == {
        "tcp 22": "the other machines; on vm-1 also 203.0.113.7",
        **dict.fromkeys(
            [f"tcp {port}" for port in (3000, 5000, 5001, 6379, 7700, 7701, 7702, 9090, "40000–49999")],
            "the other machines",
        ),
    }
    assert all(all(row) for row in rows)
    assert (
        "| vm-3    | 10.0.0.30 | no      | asia-east1-a | on-demand | n1-standard-4, nvidia-tesla-t4 | 30 GB SSD |"
        in ended.out
    )
    assert "OVER the budget of 700 USD" in ended.out and "3 × 280 = 840 USD, over 700 by 140" in ended.out


def test_plan_as_json_is_what_pulumi_is_given(here: Run, pulumi: Path):
    planned = here(f"gcp plan {ME} --set provisioning=spot --json").json
    assert here(UP).status == 0
    given = json.loads((pulumi / "resources.json").read_text())
    assert [{"part": "cluster", **each} for each in given] == [
        each for each in planned["resources"] if each["part"] == "cluster"
    ]
    assert not planned["over_budget"]


def test_cost_says_what_fits_and_what_a_million_tokens_costs(here: Run):
    cost = here(f"gcp cost {ME} --json").json
    assert cost["over_budget"] and cost["monthly_usd"] == pytest.approx(903.06, abs=0.01)
    assert cost["monthly_usd"] == pytest.approx(sum(line["usd"] for line in cost["lines"]), abs=0.01)
    names = [each["name"] for each in cost["alternatives"]]
    assert {"3 machines, spot", "2 machines, on demand", "3 machines, weekdays 9–19"} <= set(names)
    predicted = here("plan --model deepseek --devices t4,t4 --json").json
    two = cost["alternatives"][names.index("2 machines, on demand")]
    assert two["tokens_per_s"] == pytest.approx(max(each["tokens_per_s"] for each in predicted["plans"]), abs=0.1)
    for each in cost["alternatives"]:
        assert each["monthly_usd"] <= 700
        tokens = each["tokens_per_s"] * 3600 * each["hours"]
        assert each["usd_per_million_tokens"] == pytest.approx(each["monthly_usd"] / tokens * 1e6, rel=0.01)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("plan --set nods=2", "unknown name 'nods': did you mean 'nodes'?"),
        ("plan --set nodes=0", "nodes is 0: it must be at least 1"),
        ("plan --set nodes=many", "nodes is 'many': it must be a whole number"),
        ("plan --set nodes", "--set is 'nodes': give NAME=VALUE, such as nodes=2"),
        ("plan --set provisioning=spott", "unknown provisioning 'spott': did you mean 'spot'?"),
        ("plan --set zones=asia-east1-b", "zone asia-east1-b has no T4: give asia-east1-a or asia-east1-c"),
        ("plan --set zones=asia-east-c", "unknown zone 'asia-east-c': did you mean 'asia-east1-c'?"),
        ("plan --set ubuntu=20.04", "Ubuntu 20.04 has had no updates since May 2025: set ubuntu to '24.04'"),
        ("plan --set ubuntu=22.04", "Ubuntu 22.04 has Python 3.10, and 3.11 is needed: set ubuntu to '24.04'"),
        ("plan --set hours.stop=7", "stop is 7: it must be at least 10"),
        ("up", "ssh_from is not set, so nobody could log in: give your address, or iap"),
        ("up --bootstrap", "billing_account is not set: give the one of `gcloud billing accounts list`"),
        (f"up {ME}", "over the budget of 700: choose what fits (qubic-lab gcp cost), or --over-budget"),
    ],
)
def test_wrong_settings_are_one_line(here: Run, line: str, message: str):
    assert message in here(f"gcp {line}").failed(2)


def test_settings_come_from_a_file(here: Run, tmp_path: Path):
    (tmp_path / "gcp.yaml").write_text("nodes: 2\nhours: {start: 8, stop: 20}\nprovisioning: schedule\n")
    planned = here(f"gcp plan --config {tmp_path / 'gcp.yaml'} --set hours.days=daily --json").json
    assert planned["settings"]["nodes"] == 2
    assert planned["settings"]["hours"] == {"start": 8, "stop": 20, "days": "daily", "time_zone": "Asia/Taipei"}


def test_from_up_to_down(here: Run, pulumi: Path):
    assert here("gcp down --yes").err == "nothing is made\n"
    assert here("gcp status").out.startswith("nothing is made")
    up = here(UP)
    assert (up.status, up.out.splitlines()[-1]) == (0, "cluster is up: about 408 USD a month")
    assert here(UP).status == 0  # again: nothing new
    states = here("gcp status --json").json
    assert states["wrong"] == 0
    assert {"name": "vm-3", "state": "made", "machine": "RUNNING"} in states["resources"]
    assert here("gcp ssh --user me --json").json["hosts"] == [
        {"Host": "vm-1", "HostKeyAlias": "vm-1.qubic-ai.internal", "HostName": "198.51.100.4", "User": "me"},
        *(
            {"Host": name, "HostKeyAlias": f"{name}.qubic-ai.internal", "HostName": address}
            | {"ProxyJump": "vm-1", "User": "me"}
            for name, address in (("vm-2", "10.0.0.20"), ("vm-3", "10.0.0.30"))
        ),
    ]
    gone = here("gcp status --refresh")
    assert gone.status == 1 and "1 of 17 resources are not as asked for" in gone.err
    assert here("gcp down --yes").out.splitlines()[-1] == "removed cluster (16 resources)"
    assert not list((pulumi / "state").iterdir()) and not (pulumi / "site.json").exists()


def test_ssh_through_googles_proxy(here: Run, pulumi: Path):
    assert here("gcp up --set ssh_from=iap --set provisioning=spot --yes").status == 0
    second = here("gcp ssh").out.split("Host ")[2]
    assert "start-iap-tunnel vm-2 22 --listen-on-stdin --project qubic-ai-compute-layer --zone asia-east1-a" in second
    assert here("gcp ssh --json").json["hosts"][0].keys() == {"Host", "HostKeyAlias", "ProxyCommand"}


def test_the_owners_part_is_made_and_removed_by_itself(here: Run, pulumi: Path):
    account = "--set billing_account=01AB23-4CD567-89EF01 --set operators=a@example.com"
    assert here(f"gcp up --bootstrap {account} --yes").out.endswith("bootstrap is up\n")
    assert here(UP).status == 0
    assert "removed cluster (17 resources)" in here("gcp down --yes").out
    assert [each.name for each in (pulumi / "state").iterdir()] == ["bootstrap.json"]
    assert "removed bootstrap" in here("gcp down --all --yes").out
    assert not list((pulumi / "state").iterdir())


@pytest.mark.parametrize(
    ("fault", "line", "message"),
    [
        ("quota", UP, "pulumi up failed with status 255: googleapi: Error 403: Quota 'GPUS_ALL_REGIONS' exceeded."),
        ("locked", UP, "pulumi up failed with status 255: the stack is currently locked by 1 lock(s)."),
        (
            "no json",
            "gcp status",
            "pulumi stack ls --json printed 'You are using an old version of",
        ),
    ],
)
def test_faults_of_pulumi_are_one_line(
    here: Run, pulumi: Path, monkeypatch: pytest.MonkeyPatch, fault: str, line: str, message: str
):
    monkeypatch.setenv("FAKE_PULUMI", fault)
    ended = here(line)
    assert ended.status == 1 and message in ended.err and ended.err.count("\n") == 1
    monkeypatch.delenv("FAKE_PULUMI")
    assert here(UP).status == 0  # what was made is kept, and the rest follows


def test_down_fails_while_something_is_left(here: Run, pulumi: Path, monkeypatch: pytest.MonkeyPatch):
    assert here(UP).status == 0
    monkeypatch.setenv("FAKE_PULUMI", "left over")
    left = here("gcp down --yes")
    assert (left.status, left.err) == (
        1,
        "error: pulumi has ended, but these are left: qubic-ai-vpc; run qubic-lab gcp down again\n",
    )
    monkeypatch.delenv("FAKE_PULUMI")
    assert here("gcp down --yes").status == 0


def test_it_shows_the_change_and_asks_before_it_changes_anything(
    here: Run, pulumi: Path, monkeypatch: pytest.MonkeyPatch
):
    ask = UP.removesuffix(" --yes")
    assert "there is no terminal to ask: give --yes" in here(ask).failed(2)
    for answer, made in (("n\n", 0), ("y\n", 17)):
        terminal = StringIO(answer)
        terminal.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr(sys, "stdin", terminal)
        assert "+ 18 to create" in here(ask).out
        state = json.loads((pulumi / "state" / "cluster.json").read_text())["deployment"]["resources"]
        assert sum(not each["type"].startswith("pulumi:") for each in state) == made


def test_an_interrupted_up_lets_pulumi_save_what_it_made(pulumi: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("FAKE_PULUMI", "slow")
    with subprocess.Popen(
        [sys.executable, "-m", "qubic_lab.cli.main", *UP.split()], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        wait_until((pulumi / "begun").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert "qubic-ai-vpc" in (pulumi / "state" / "cluster.json").read_text()


def test_what_is_missing_comes_with_its_remedy(here: Run, pulumi: Path, monkeypatch: pytest.MonkeyPatch):
    (pulumi.parents[1] / "peers/pulumi/bin/python").unlink()
    assert "run make gcp in a checkout" in here(UP).failed(1)
    monkeypatch.setenv("PATH", "/nowhere")
    assert "pulumi is not on the PATH: install it as https://www.pulumi.com/docs/install says" in here(UP).failed(1)
