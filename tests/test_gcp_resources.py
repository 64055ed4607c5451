"""The resources on Google Cloud: what they open, what they leave behind, and that Pulumi registers just them."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qubic_lab.launch_plan import costs
from qubic_lab.launch_plan.engine import FOLDER, startup_script
from qubic_lab.launch_plan.network import ANYBODY, EPHEMERAL
from qubic_lab.launch_plan.resources import Resource, bootstrap, cluster, plain
from qubic_lab.launch_plan.site import Hours, Site

SITE = Site(billing_account="01AB23-4CD567-89EF01", operators=("a@example.com",), ssh_from="203.0.113.7", public=True)
SITES = {
    "open": SITE,
    "as few as possible": Site(ssh_from="iap", nodes=1),
    "spot, two zones": replace(SITE, provisioning="spot", zones=("asia-east1-a", "asia-east1-c"), public=False),
    "schedule": replace(SITE, provisioning="schedule", nodes=2),
    "two coordinators": Site(ssh_from="203.0.113.7", coordinators=2),
}
MISSION_INSIDE = {"22", "5000", "6379", "9090", "3000"}
GRPC_AND_COLLECTIVES = {"5001", "7700", "7701", "7702", "{}-{}".format(*EPHEMERAL)}
PACKAGES = Path(__file__).parents[1] / ".peers" / "pulumi" / "bin" / "python"


def named(resources: tuple[Resource, ...], kind: str) -> dict[str, Any]:
    return {each.name: each.properties for each in resources if each.kind == kind}


def values(content: Any) -> Iterator[tuple[str, Any]]:
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield str(name), value
        if isinstance(value, dict | list):
            yield from values(value)


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_every_open_port_is_in_the_missions_list(site: Site):
    rules = named(cluster(site, ""), "compute.Firewall")
    inside = {"source_tags": ["qubic-ai-internal"], "target_tags": ["qubic-ai-internal"]}
    expected = {"allow-internal-qubic-ai": (MISSION_INSIDE | GRPC_AND_COLLECTIVES, inside)}
    outside = {"source_ranges": ["35.235.240.0/20" if site.ssh_from == "iap" else "203.0.113.7/32"]}
    expected["allow-ssh-access"] = ({"22"}, outside | {"target_tags": ["qubic-ai-ssh"]})
    if site.coordinators > 1:  # the database is for other coordinators alone
        between = {"source_tags": ["qubic-ai-coordinator"], "target_tags": ["qubic-ai-database"]}
        expected["allow-internal-database"] = ({"5432"}, between)
    if site.public:
        anybody = {"source_ranges": [ANYBODY], "target_tags": ["qubic-ai-public"]}
        expected["allow-external-api"] = ({"80", "443"}, anybody)
    assert rules.keys() == expected.keys()
    for name, (ports, between) in expected.items():
        rule = rules[name]
        assert [each["protocol"] for each in rule["allows"]] == ["tcp"] + ["icmp"] * (name == "allow-internal-qubic-ai")
        assert set(rule["allows"][0]["ports"]) == ports
        assert {key: rule[key] for key in rule if key.startswith(("source", "target"))} == between


def test_there_is_no_network_with_rules_that_admit_anybody():
    assert named(bootstrap(SITE), "organizations.Project")["project"]["auto_create_network"] is False
    networks = named(cluster(SITE, ""), "compute.Network")
    assert [(name, each["auto_create_subnetworks"]) for name, each in networks.items()] == [("qubic-ai-vpc", False)]
    for machine in named(cluster(SITE, ""), "compute.Instance").values():
        assert [each["subnetwork"].name for each in machine["network_interfaces"]] == ["qubic-ai-subnet"]


def test_only_the_first_machine_has_an_address_outside_and_only_if_somebody_may_use_it():
    def outside(site: Site) -> list[str]:
        machines = named(cluster(site, ""), "compute.Instance")
        return [name for name, each in machines.items() if "access_configs" in each["network_interfaces"][0]]

    assert outside(SITE) == outside(SITES["spot, two zones"]) == ["vm-1"]
    assert outside(SITES["as few as possible"]) == outside(Site()) == []


@pytest.mark.parametrize("site", SITES.values(), ids=SITES)
def test_removing_leaves_nothing(site: Site):
    for each in plain(bootstrap(site)) + plain(cluster(site, "")):
        found = list(values(each["properties"]))
        assert not [name for name, value in found if name in ("deletion_protection", "protect") and value]
        assert {value for name, value in found if name == "deletion_policy"} <= {"DELETE"}
        assert {value for name, value in found if name == "auto_delete"} <= {True}
        assert not [name for name, _ in found if name in ("attached_disks", "scratch_disks", "retain_on_delete")]


def test_machines_are_as_the_mission_has_them():
    machines = named(cluster(SITE, "#!"), "compute.Instance")
    for (name, machine), disk in zip(machines.items(), (50, 30, 30), strict=True):
        assert machine["machine_type"] == "n1-standard-4"
        assert machine["guest_accelerators"] == [{"type": "nvidia-tesla-t4", "count": 1}]
        start = machine["boot_disk"]["initialize_params"]
        assert (start["size"], start["type"]) == (disk, "pd-ssd") and "ubuntu-2404-lts" in start["image"]
        assert machine["metadata"]["startup-script"] == "#!"
        assert machine["scheduling"]["on_host_maintenance"] == "TERMINATE"
        assert machine["service_account"]["email"].startswith("qubic-ai-node@"), name
    names = named(cluster(SITE, ""), "dns.RecordSet").values()
    assert [(each["name"], each["rrdatas"]) for each in names] == [
        (f"vm-{number}.qubic-ai.internal.", [f"10.0.0.{number}0"]) for number in (1, 2, 3)
    ]


def test_settings_change_zones_and_provisioning():
    spot = named(cluster(SITES["spot, two zones"], ""), "compute.Instance")
    assert [each["zone"][-1] for each in spot.values()] == ["a", "c", "a"]
    assert {each["scheduling"]["provisioning_model"] for each in spot.values()} == {"SPOT"}
    hours = named(cluster(SITES["schedule"], ""), "compute.ResourcePolicy")["qubic-ai-hours"]
    policy = hours["instance_schedule_policy"]
    assert [policy[name]["schedule"] for name in ("vm_start_schedule", "vm_stop_schedule")] == [
        "0 9 * * 1-5",
        "0 19 * * 1-5",
    ]


def test_the_budget_warns_and_accounts_have_only_their_roles():
    made = bootstrap(SITE)
    budget = named(made, "billing.Budget")["budget"]
    assert budget["amount"]["specified_amount"] == {"currency_code": "USD", "units": "700"}
    assert [each["threshold_percent"] for each in budget["threshold_rules"]] == [0.8, 0.9]
    grants = {name: each["role"] for name, each in named(made, "projects.IAMMember").items()}
    assert {role for name, role in grants.items() if name.startswith("deploy")} == {
        "roles/compute.admin",
        "roles/storage.admin",
        "roles/dns.admin",
    }
    assert not {"roles/owner", "roles/editor"} & set(grants.values())
    assert not named(made, "serviceaccount.Key")  # people act as the account, nobody holds a key of it
    services = {each["service"] for each in named(made, "projects.Service").values()}
    needed = "compute storage monitoring logging dns iam serviceusage cloudresourcemanager billingbudgets iap"
    assert {f"{name}.googleapis.com" for name in needed.split()} <= services


def test_a_month_costs_less_the_longer_a_machine_runs():
    full = costs.estimate(Site(), 100.0)
    machines = [line.usd for line in full.lines if line.what.startswith("3 ×")]
    assert sum(machines) == pytest.approx(3 * 730 * (0.21999 + 0.35) * 0.7)  # the discount of a whole month
    half = costs.estimate(Site(provisioning="schedule", hours=Hours(0, 12, "daily")), 100.0)
    assert half.lines[0].usd == pytest.approx(machines[0] / 0.7 * (0.25 + 0.25 * 0.8), rel=0.01)
    spot = costs.estimate(Site(provisioning="spot"), 100.0)
    assert spot.lines[0].usd == pytest.approx(3 * 730 * 0.03563)


def test_alternatives_fit_and_are_others():
    found = costs.alternatives(Site(), lambda nodes: 76.0 * nodes)
    assert all(not each.over_budget for each in found)
    assert "3 machines, on demand" not in {each.name for each in found}
    work = [each.tokens_per_s * each.hours for each in found]
    assert work == sorted(work, reverse=True)
    assert not costs.alternatives(Site(budget_usd=1), lambda nodes: 76.0 * nodes)


def test_the_start_up_script_is_valid_and_takes_its_values_from_the_machine():
    subprocess.run(["bash", "-n", FOLDER / "startup.sh"], check=True)
    asked = {"role", "address", "coordinators", "source", "ports"}
    metadata = named(cluster(SITE, startup_script()), "compute.Instance")["vm-1"]["metadata"]
    assert {name.removeprefix("qubic-lab-") for name in metadata if name.startswith("qubic-lab-")} == asked
    assert all(f"attribute {name}" in metadata["startup-script"] for name in asked)


@pytest.mark.skipif(not PACKAGES.exists(), reason="Pulumi's packages are not installed: make gcp")
def test_pulumi_registers_just_these_resources_and_the_same_again(tmp_path: Path):
    shutil.copy(FOLDER / "__main__.py", tmp_path)
    described = {name: plain(bootstrap(site)) + plain(cluster(site, startup_script())) for name, site in SITES.items()}
    (tmp_path / "described.json").write_text(json.dumps(described))
    script = Path(__file__).with_name("pulumi_mocks.py")
    done = subprocess.run([PACKAGES, script, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    registered = json.loads(done.stdout)
    for name, (first, second) in registered.items():
        assert first == second
        assert {each["name"] for each in first} == {each["name"] for each in described[name]}
        rules = {each["name"]: each["inputs"] for each in first if each["type"] == "gcp:compute/firewall:Firewall"}
        opened = {port for rule in rules.values() for allow in rule["allows"] for port in allow.get("ports", ())}
        allowed = MISSION_INSIDE | GRPC_AND_COLLECTIVES | ({"80", "443"} if SITES[name].public else set())
        allowed |= {"5432"} if SITES[name].coordinators > 1 else set()
        assert opened == allowed
