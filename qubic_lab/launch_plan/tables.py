"""What people read of a site: who may connect to which port, who has which role, how to get in by SSH. Pure."""

from qubic_lab.launch_plan.network import IAP, SERVICES
from qubic_lab.launch_plan.resources import DEPLOY_ROLES, GPU, MACHINE, NODE_ROLES, OPERATOR_ROLES, OWNER_ROLES
from qubic_lab.launch_plan.site import IMAGES, Site

MACHINES = ("machine", "address", "outside", "zone", "paid", "type", "disk", "image", "tags")
PORTS = ("port", "on", "who may connect", "what for", "guarded by")
ROLES = ("who", "role", "for")


def machine_rows(site: Site) -> list[tuple[str, ...]]:
    """Return a row for each machine."""
    hours = f" {site.hours.start}–{site.hours.stop} {site.hours.days}" if site.provisioning == "schedule" else ""
    return [
        (
            *(host.name, host.address, "yes" if host.first and site.outside else "no", site.zone(number)),
            *(site.provisioning + hours, f"{MACHINE}, {GPU}", f"{host.disk_gb} GB SSD", IMAGES[site.ubuntu]),
            ", ".join(site.network.tags(host)),
        )
        for number, host in enumerate(site.network.hosts)
    ]


def port_rows(site: Site) -> list[tuple[str, ...]]:
    """Return a row for each port that is open to somebody beyond its machine."""
    network = site.network
    outside = {"": "", IAP: "; operators by Google's proxy"}.get(site.ssh_from, f"; on vm-1 also {site.ssh_from}")
    who = {
        "coordinators": "the other coordinators",
        "nodes": "the other machines",
        "ssh": f"the other machines{outside}",
        "public": "anybody",
    }
    rows: list[tuple[str, ...]] = []
    for each in sorted(SERVICES.values(), key=lambda each: each.ports):
        there = [host.name for host in network.hosts if each in network.services(host)]
        reach = network.reach(each)
        if reach == "host" or not there:
            continue
        first, last = each.ports
        port = str(first) if first == last else f"{first}–{last}"
        rows.append((f"tcp {port}", ", ".join(there), who[reach], each.what, each.guard))
    rows.append(("icmp", "all", "the other machines", "ping, largest packet", "nothing is served"))
    return rows


def closed(site: Site) -> str:
    """Return what is closed by these settings, and which of them opens it."""
    ways = {
        "ports 80 and 443 of vm-1 (public: true, for a TLS proxy of yours)": site.public,
        "SSH from outside (ssh_from)": bool(site.ssh_from),
        "PostgreSQL for other coordinators (coordinators: 2)": site.coordinators > 1,
    }
    return f"Closed, with what opens it: {'; '.join(what for what, is_open in ways.items() if not is_open) or 'none'}."


def role_rows(site: Site) -> list[tuple[str, ...]]:
    """Return a row for each role that somebody needs or gets."""
    rows: list[tuple[str, ...]] = [("owner, for the bootstrap", role, why) for role, why in OWNER_ROLES.items()]
    rows += [("deploy account", role, why) for role, why in DEPLOY_ROLES.items()]
    rows.append(("deploy account", "roles/iam.serviceAccountUser", "on the node account alone: gives it to machines"))
    rows += [("node account", role, why) for role, why in NODE_ROLES.items()]
    who = ", ".join(site.operators) or "operators: none yet, set operators"
    rows += [(who, role, why) for role, why in OPERATOR_ROLES.items()]
    rows.append((who, "roles/iam.serviceAccountTokenCreator", "on the deploy account: acts as it, without a key"))
    rows.append((who, "roles/iam.serviceAccountUser", "on the node account: logs in to its machines"))
    rows.append(("Google's scheduler", "roles/compute.instanceAdmin.v1", "starts and stops machines by the schedule"))
    return rows


def ssh_aliases(site: Site, outside: str, user: str | None) -> list[dict[str, str]]:
    """Return the entries of an SSH configuration, `Host` first; `outside` is the address of vm-1 outside."""
    aliases = []
    for number, host in enumerate(site.network.hosts):
        entry = {"Host": host.name, "HostKeyAlias": host.domain_name}
        if site.ssh_from == IAP:
            tunnel = f"gcloud compute start-iap-tunnel {host.name} 22 --listen-on-stdin"
            entry["ProxyCommand"] = f"{tunnel} --project {site.project} --zone {site.zone(number)}"
        elif host.first:
            entry["HostName"] = outside
        else:
            entry |= {"HostName": host.address, "ProxyJump": site.network.hosts[0].name}
        aliases.append(entry | ({"User": user} if user else {}))
    return aliases
