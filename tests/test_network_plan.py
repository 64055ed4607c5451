import pytest

from qubic_lab.errors import InputError, NotFoundError
from qubic_lab.launch_plan.network import ANYBODY, COORDINATOR, EPHEMERAL, IAP, INTERNAL, SERVICES, SSH, Network

HERE = "203.0.113.7"
INSIDE = ((22, 22), (3000, 3000), (5000, 5000), (5001, 5001), (6379, 6379), (7700, 7700), (7701, 7701), (7702, 7702))
INSIDE += ((9090, 9090), EPHEMERAL)
"""The list of the mission, and gRPC (5001, 7700, 7702), torchrun's store (7701) and the collectives."""


def test_machines_have_fixed_addresses_and_names():
    found = [(host.name, host.address, host.domain_name, host.disk_gb) for host in Network().hosts]
    assert found == [
        ("vm-1", "10.0.0.10", "vm-1.qubic-ai.internal", 50),
        ("vm-2", "10.0.0.20", "vm-2.qubic-ai.internal", 30),
        ("vm-3", "10.0.0.30", "vm-3.qubic-ai.internal", 30),
    ]


def test_between_nodes_the_listed_ports_and_the_collectives_are_open_and_nothing_else():
    for network in (Network(), Network(ssh_from=HERE, public=True)):
        for source, target in (("vm-2", "vm-1"), ("10.0.0.10", "vm-3")):
            assert sorted(set(network.open_ports(source, target)) - {(80, 80), (443, 443)}) == sorted(INSIDE)
    assert Network().may_reach("vm-2", "vm-3", EPHEMERAL[1])
    assert not Network().may_reach("vm-2", "vm-3", EPHEMERAL[1] + 1)


@pytest.mark.parametrize(
    ("network", "source", "target", "expected"),
    [
        (Network(), HERE, "vm-1", set()),
        (Network(ssh_from=HERE), HERE, "vm-1", {22}),
        (Network(ssh_from=HERE), HERE, "vm-2", set()),  # from vm-1 on
        (Network(ssh_from=HERE), "203.0.113.8", "vm-1", set()),
        (Network(ssh_from=IAP), HERE, "vm-1", set()),
        (Network(ssh_from=IAP), "35.235.240.9", "vm-2", {22}),
        (Network(public=True), HERE, "vm-1", {80, 443}),
        (Network(public=True), HERE, "vm-2", set()),
        (Network(), "10.0.0.77", "vm-1", set()),  # in the subnet, but no node
        (Network(nodes=1), "10.0.0.20", "vm-1", set()),
        (Network(public=True, coordinators=2), HERE, "vm-1", {80, 443}),
    ],
)
def test_others_reach_only_what_was_opened_to_them(network: Network, source: str, target: str, expected: set[int]):
    assert {first for first, last in network.open_ports(source, target) if first == last} == expected


def test_only_the_public_rule_admits_anybody():
    for network in (Network(ssh_from=HERE, public=True), Network(ssh_from=IAP), Network()):
        assert [rule.name for rule in network.rules if ANYBODY in rule.source_ranges] == (
            ["allow-external-api"] if network.public else []
        )


@pytest.mark.parametrize("coordinators", [1, 2])
def test_what_listens_beyond_loopback_is_what_the_rules_open(coordinators: int):
    network = Network(ssh_from=HERE, public=True, coordinators=coordinators)
    ruled = {ports for rule in network.rules for ports in rule.ports}
    assert ruled == {each.ports for each in SERVICES.values() if network.reach(each) != "host"}


def test_only_coordinators_reach_the_database_of_the_first():
    network = Network(coordinators=2)
    who = {(each, to) for each in ("vm-1", "vm-2", "vm-3") for to in ("vm-1", "vm-2", "vm-3") if each != to}
    assert {pair for pair in who if network.may_reach(*pair, 5432)} == {("vm-2", "vm-1")}
    assert not any(Network().may_reach(*pair, 5432) for pair in who)
    assert [each.name for each in network.services(network.host("vm-2")) if each.ports[0] in (5000, 5001)] == [
        "coordinator",
        "registry",
    ]


def test_no_two_services_of_a_machine_share_a_port_and_none_is_in_the_range_of_collectives():
    for host in Network(public=True).hosts:
        ports = [each.ports for each in Network(public=True).services(host) if each.name != "collectives"]
        assert len(ports) == len(set(ports))
        assert all(not EPHEMERAL[0] <= port <= EPHEMERAL[1] for pair in ports for port in pair)


def test_ports_are_the_defaults_of_the_commands():
    from qubic_lab.cli import coordinator, dashboard, serve

    defaults = {"coordinator": coordinator.HTTP, "registry": coordinator.NODES}
    defaults |= {"dashboard": dashboard.HTTP, "serve": serve.HTTP}
    assert {name: int(address.rpartition(":")[2]) for name, address in defaults.items()} == {
        name: SERVICES[name].ports[0] for name in defaults
    }


def test_tags():
    first, second, _ = Network().hosts
    assert Network().tags(first) == (INTERNAL,)
    assert Network(ssh_from=HERE).tags(second) == (INTERNAL,)
    shared = Network(coordinators=2)
    assert shared.tags(shared.host("vm-2")) == (INTERNAL, COORDINATOR)
    assert Network(ssh_from=IAP).tags(second) == (INTERNAL, SSH)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("0.0.0.0/0", "ssh_from is '0.0.0.0/0': give one IPv4 address, such as 203.0.113.7, or iap"),
        ("me", "ssh_from is 'me': give one IPv4 address, such as 203.0.113.7, or iap"),
        ("192.168.1.2", "ssh_from is '192.168.1.2', a private address: give the one that others see, or iap"),
    ],
)
def test_ssh_is_for_one_address(wrong: str, message: str):
    with pytest.raises(InputError) as caught:
        Network(ssh_from=wrong)
    assert str(caught.value) == message


def test_unknown_machine():
    with pytest.raises(NotFoundError, match="no machine 'vm-4': did you mean"):
        Network().host("vm-4")
