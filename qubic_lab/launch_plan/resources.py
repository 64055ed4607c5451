"""The resources of a cluster on Google Cloud, as plain values: what `gcp plan` shows is what Pulumi is given. Pure.

The `bootstrap` is made once by an owner: project, services, budget, accounts and their roles. The `cluster` is made and
removed as often as wanted, by the deploy account, which can do no more than that.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from qubic_lab.launch_plan.network import DOMAIN, EPHEMERAL, SUBNET, Host, Rule
from qubic_lab.launch_plan.site import IMAGES, REGION, Site

Part = Literal["bootstrap", "cluster"]

MACHINE, GPU = "n1-standard-4", "nvidia-tesla-t4"
SERVICES = (
    *("compute", "storage", "monitoring", "logging", "dns", "iam", "iamcredentials", "serviceusage"),
    *("cloudresourcemanager", "billingbudgets", "iap"),
)
"""Of Google's services; iamcredentials lets people act as an account without a key."""
ALERTS = (0.8, 0.9)
DEPLOY_ROLES = {
    "roles/compute.admin": "machines, disks, network, firewall, schedules",
    "roles/storage.admin": "buckets",
    "roles/dns.admin": "the private zone and its names",
}
NODE_ROLES = {"roles/logging.logWriter": "logs", "roles/monitoring.metricWriter": "metrics"}
OPERATOR_ROLES = {
    "roles/compute.osAdminLogin": "logging in, with sudo",
    "roles/iap.tunnelResourceAccessor": "SSH through Google's proxy",
}
OWNER_ROLES = {
    "roles/resourcemanager.projectCreator": "on the organisation: the project",
    "roles/billing.user": "on the billing account: pays for the project",
    "roles/billing.costsManager": "on the billing account: the budget",
}
"""What the owner of the bootstrap needs; in the new project the owner has all rights."""


@dataclass(frozen=True)
class Ref:
    """An output of another resource, known only when that is made; `template` puts it in a text."""

    name: str
    output: str = "id"
    template: str = "{}"


@dataclass(frozen=True)
class Resource:
    """One resource: its kind in Pulumi's package `pulumi_gcp`, its name and properties, and by which provider."""

    kind: str
    name: str
    properties: Mapping[str, Any]
    provider: str = ""
    after: tuple[str, ...] = field(default=())
    """Others that must exist before, though no property says so."""


PROJECT = Ref("project", "project_id")
VPC, SUBNETWORK = Ref("qubic-ai-vpc"), Ref("qubic-ai-subnet")


def bootstrap(site: Site) -> tuple[Resource, ...]:
    """Return what an owner makes once."""
    made = _project(site)
    services = tuple(each.name for each in made if each.kind == "projects.Service")
    # Budgets are asked for in the name of a project, which must exist.
    inside = {"project": PROJECT, "billing_project": PROJECT, "user_project_override": True}
    made.append(Resource("Provider", "in-project", inside, after=services))
    return (
        *made,
        *(replace(each, provider="in-project", after=services) for each in (_budget(site), *_accounts(site))),
    )


def _project(site: Site) -> list[Resource]:
    """Return the project and its services."""
    project = {
        "project_id": site.project,
        "name": site.project,
        "billing_account": site.billing_account,
        "auto_create_network": False,  # the network `default` has rules that admit anybody
        "deletion_policy": "DELETE",
    }
    services = [
        Resource(
            "projects.Service",
            f"service-{name}",
            {"project": PROJECT, "service": f"{name}.googleapis.com", "disable_on_destroy": False},
        )
        for name in SERVICES
    ]
    return [Resource("organizations.Project", "project", project), *services]


def _budget(site: Site) -> Resource:
    properties = {
        "billing_account": site.billing_account,
        "display_name": f"{site.project}: {site.budget_usd} USD a month",
        "amount": {"specified_amount": {"currency_code": "USD", "units": str(site.budget_usd)}},
        "budget_filter": {"projects": [Ref("project", "number", "projects/{}")], "calendar_period": "MONTH"},
        "threshold_rules": [{"threshold_percent": share} for share in ALERTS],
    }
    return Resource("billing.Budget", "budget", properties)


def _accounts(site: Site) -> list[Resource]:
    """Return the accounts, their roles, and who may act as them."""
    made = [
        Resource("serviceaccount.Account", name, {"account_id": f"qubic-ai-{name}", "display_name": what})
        for name, what in (("deploy", "makes and removes the machines"), ("node", "held by the machines"))
    ]

    def grant(who: str, member: Any, roles: Iterable[str]) -> None:
        for role in roles:
            properties = {"project": PROJECT, "role": role, "member": member}
            made.append(Resource("projects.IAMMember", f"{who}-{role.removeprefix('roles/')}", properties))

    def lend(who: str, member: Any, account: str, role: str) -> None:
        properties = {"service_account_id": Ref(account, "name"), "role": role, "member": member}
        made.append(Resource("serviceaccount.IAMMember", f"{who}-{role.removeprefix('roles/')}-{account}", properties))

    deploy = Ref("deploy", "member")
    grant("deploy", deploy, DEPLOY_ROLES)
    lend("deploy", deploy, "node", "roles/iam.serviceAccountUser")
    grant("node", Ref("node", "member"), NODE_ROLES)
    for address in site.operators:
        member = f"user:{address}"
        grant(address, member, OPERATOR_ROLES)
        lend(address, member, "deploy", "roles/iam.serviceAccountTokenCreator")
        lend(address, member, "node", "roles/iam.serviceAccountUser")
    agent = Ref("project", "number", "serviceAccount:service-{}@compute-system.iam.gserviceaccount.com")
    grant("scheduler", agent, ("roles/compute.instanceAdmin.v1",))  # starts and stops machines by the schedule
    return made


def cluster(site: Site, startup: str) -> tuple[Resource, ...]:
    """Return what the deploy account makes; `startup` is the script that machines run at each start."""
    account = {"project": site.project, "region": REGION, "impersonate_service_account": site.deploy_account}
    deployed = (*_network(site), *_names(site), *_machines(site, startup))
    return (Resource("Provider", "deploy", account), *(replace(each, provider="deploy") for each in deployed))


def _named(kind: str, name: str, **properties: Any) -> Resource:
    """Return a resource that has the same name on Google Cloud."""
    return Resource(kind, name, {"name": name, **properties})


def _network(site: Site) -> list[Resource]:
    """Return the network, its subnet, the way out and the firewall."""
    subnet = {"network": VPC, "region": REGION, "ip_cidr_range": str(SUBNET), "private_ip_google_access": True}
    # Machines without an address outside reach package indexes and models through it; nothing comes in.
    nat = {
        "router": Ref("qubic-ai-router", "name"),
        "region": REGION,
        "nat_ip_allocate_option": "AUTO_ONLY",
        "source_subnetwork_ip_ranges_to_nat": "LIST_OF_SUBNETWORKS",
        "subnetworks": [{"name": SUBNETWORK, "source_ip_ranges_to_nats": ["ALL_IP_RANGES"]}],
    }
    return [
        _named("compute.Network", VPC.name, auto_create_subnetworks=False, routing_mode="REGIONAL"),
        _named("compute.Subnetwork", SUBNETWORK.name, **subnet),
        _named("compute.Router", "qubic-ai-router", network=VPC, region=REGION),
        _named("compute.RouterNat", "qubic-ai-nat", **nat),
        *(_named("compute.Firewall", rule.name, network=VPC, **_firewall(rule)) for rule in site.network.rules),
    ]


def _names(site: Site) -> list[Resource]:
    """Return the private DNS with the machines' names."""
    zone = {
        "dns_name": f"{DOMAIN}.",
        "description": "Names of the machines",
        "visibility": "private",
        "private_visibility_config": {"networks": [{"network_url": VPC}]},
    }
    record = {"managed_zone": Ref("qubic-ai-internal", "name"), "type": "A", "ttl": 300}
    return [
        _named("dns.ManagedZone", "qubic-ai-internal", **zone),
        *(
            Resource(
                "dns.RecordSet",
                f"{host.name}-name",
                {"name": f"{host.domain_name}.", **record, "rrdatas": [host.address]},
            )
            for host in site.network.hosts
        ),
    ]


def _machines(site: Site, startup: str) -> list[Resource]:
    """Return the machines with their addresses, and the hours in which they run."""
    made = []
    if site.provisioning == "schedule":
        policy = {
            "vm_start_schedule": {"schedule": site.hours.cron(site.hours.start)},
            "vm_stop_schedule": {"schedule": site.hours.cron(site.hours.stop)},
            "time_zone": site.hours.time_zone,
        }
        hours = _named("compute.ResourcePolicy", "qubic-ai-hours", region=REGION, instance_schedule_policy=policy)
        made.append(hours)
    if site.outside:
        made.append(_named("compute.Address", "vm-1-outside", region=REGION, address_type="EXTERNAL"))
    for number, host in enumerate(site.network.hosts):
        inside = {"region": REGION, "subnetwork": SUBNETWORK, "address_type": "INTERNAL", "address": host.address}
        made.append(_named("compute.Address", f"{host.name}-inside", **inside))
        made.append(_named("compute.Instance", host.name, **_machine(site, host, site.zone(number), startup)))
    return made


def _firewall(rule: Rule) -> dict[str, Any]:
    ports = [str(first) if first == last else f"{first}-{last}" for first, last in rule.ports]
    sources = (
        {"source_tags": list(rule.source_tags)} if rule.source_tags else {"source_ranges": list(rule.source_ranges)}
    )
    allows: list[dict[str, Any]] = [{"protocol": "tcp", "ports": ports}]
    if rule.icmp:
        allows.append({"protocol": "icmp"})
    return {"direction": "INGRESS", "allows": allows, "target_tags": [rule.target_tag], **sources}


def _machine(site: Site, host: Host, zone: str, startup: str) -> dict[str, Any]:
    spot = site.provisioning == "spot"
    interface: dict[str, Any] = {"subnetwork": SUBNETWORK, "network_ip": Ref(f"{host.name}-inside", "address")}
    if host.first and site.outside:
        interface["access_configs"] = [{"nat_ip": Ref("vm-1-outside", "address")}]
    return {
        "zone": zone,
        "machine_type": MACHINE,
        "guest_accelerators": [{"type": GPU, "count": 1}],
        "boot_disk": {
            "auto_delete": True,
            "initialize_params": {"image": IMAGES[site.ubuntu], "size": host.disk_gb, "type": "pd-ssd"},
        },
        "network_interfaces": [interface],
        "tags": list(site.network.tags(host)),
        "scheduling": {
            "provisioning_model": "SPOT" if spot else "STANDARD",
            "preemptible": spot,
            "automatic_restart": not spot,
            "on_host_maintenance": "TERMINATE",  # a machine with a GPU cannot be moved
            **({"instance_termination_action": "STOP"} if spot else {}),
        },
        **({"resource_policies": Ref("qubic-ai-hours")} if site.provisioning == "schedule" else {}),
        "service_account": {"email": site.node_account, "scopes": ["cloud-platform"]},
        "metadata": {
            "enable-oslogin": "TRUE",
            "block-project-ssh-keys": "TRUE",
            "serial-port-enable": "FALSE",
            "startup-script": startup,
            "qubic-lab-role": "first" if host.first else "other",
            "qubic-lab-address": host.address,
            "qubic-lab-coordinators": ",".join(each.address for each in site.network.hosts if each.coordinator),
            "qubic-lab-ports": "{} {}".format(*EPHEMERAL),
            "qubic-lab-source": site.source,
        },
        "allow_stopping_for_update": True,
        "deletion_protection": False,
    }


def plain(resources: tuple[Resource, ...]) -> list[dict[str, Any]]:
    """Return resources as JSON has them; an output of another one is `{"ref": NAME, "output": …, "template": …}`."""
    return [
        {
            "kind": each.kind,
            "name": each.name,
            "properties": _plain(each.properties),
            "provider": each.provider,
            "after": list(each.after),
        }
        for each in resources
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Ref):
        return {"ref": value.name, "output": value.output, "template": value.template}
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
