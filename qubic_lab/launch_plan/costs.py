"""What a cluster costs in a month, and which other ones fit the budget. Pure; prices are lists, without tax."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from qubic_lab.launch_plan.site import Hours, Site

HOURS_A_MONTH = 730.0
SAID_USD = 280
"""What a machine was said to cost a month when the budget was set."""
_CATALOG = "catalogs/v8/gcp/vms.csv of github.com/skypilot-org/skypilot-catalog, from Google's price list, 2026"
_NAT = "cloud.google.com/nat/pricing, 2026"
_CALCULATOR = "pricing.yml of github.com/Cyclenerd/google-cloud-pricing-cost-calculator, from Google's price list"
_DISKS, _ADDRESSES = f"{_CALCULATOR}, 2026-08-20", f"{_CALCULATOR}, 2025-03-06"
_SPOT_ADDRESS = "cloud.google.com/vpc/network-pricing, as read on 2026-10-16 by the wiki of Clouds-Against-Humanity"
_DNS = "cloud.google.com/dns/pricing, as read on 2026-09-20 by github.com/api-evangelist/google-cloud-dns"


@dataclass(frozen=True)
class Price:
    """A list price in asia-east1 in US dollars, per `unit`, and where it is from."""

    usd: float
    unit: str
    source: str


PRICES = {
    "n1-standard-4": Price(0.21999, "hour", _CATALOG),
    "n1-standard-4, spot": Price(0.03563, "hour", _CATALOG),
    "T4": Price(0.35, "hour", _CATALOG),
    "T4, spot": Price(0.1383, "hour", _CATALOG),
    "SSD": Price(0.17, "GB and month", _DISKS),
    "address outside": Price(0.005, "hour", _ADDRESSES),
    "address outside, spot": Price(0.0025, "hour", _SPOT_ADDRESS),
    "address outside, machine stopped": Price(0.01, "hour", _ADDRESSES),
    "NAT of a machine": Price(0.0014, "hour", _NAT),
    "NAT's address": Price(0.005, "hour", _NAT),
    "private DNS zone": Price(0.2, "month", _DNS),
}
NOT_COUNTED = "traffic to the outside, NAT's 0.045 USD a GB, logs beyond the free 50 GB, snapshots, tax"
_SUSTAINED = (1.0, 0.8, 0.6, 0.4)
"""Share of the price in each quarter of a month that an N1 machine or its GPU runs; spot has no such discount."""


@dataclass(frozen=True)
class Line:
    """A part of the cost of a month."""

    what: str
    usd: float


@dataclass(frozen=True)
class Estimate:
    """The cost of a site in a month, and what it does for it: predicted tokens/s while it runs and is fully used."""

    name: str
    nodes: int
    provisioning: str
    hours: float
    lines: tuple[Line, ...]
    budget_usd: int
    tokens_per_s: float

    @property
    def monthly_usd(self) -> float:
        """The sum of the lines."""
        return sum(line.usd for line in self.lines)

    @property
    def over_budget(self) -> bool:
        """Whether it is over the budget."""
        return self.monthly_usd > self.budget_usd

    @property
    def usd_per_million_tokens(self) -> float:
        """The cost of a million tokens if it is fully used in all its hours."""
        return self.monthly_usd / (self.tokens_per_s * 3600 * self.hours) * 1e6


def estimate(site: Site, tokens_per_s: float, name: str = "as set") -> Estimate:
    """Return the cost of a site in a month of 730 hours."""
    hours = site.hours.a_month if site.provisioning == "schedule" else HOURS_A_MONTH
    spot = site.provisioning == "spot"
    suffix = ", spot" if spot else ""
    paid = hours if spot else HOURS_A_MONTH * _sustained(hours / HOURS_A_MONTH)
    lines = [
        Line(f"{site.nodes} × n1-standard-4{suffix}", site.nodes * paid * _usd(f"n1-standard-4{suffix}")),
        Line(f"{site.nodes} × T4{suffix}", site.nodes * paid * _usd(f"T4{suffix}")),
    ]
    disks = [host.disk_gb for host in site.network.hosts]
    lines.append(Line(f"SSD of {' + '.join(map(str, disks))} GB", sum(disks) * _usd("SSD")))
    if site.outside:
        stopped = (HOURS_A_MONTH - hours) * _usd("address outside, machine stopped")
        lines.append(Line("address outside of vm-1", hours * _usd(f"address outside{suffix}") + stopped))
    nat = HOURS_A_MONTH * _usd("NAT's address") + site.nodes * hours * _usd("NAT of a machine")
    lines += [Line("NAT", nat), Line("private DNS zone", _usd("private DNS zone"))]
    return Estimate(name, site.nodes, site.provisioning, hours, tuple(lines), site.budget_usd, tokens_per_s)


def alternatives(site: Site, tokens_per_s: Callable[[int], float]) -> tuple[Estimate, ...]:
    """Return other ways to run that fit the budget, those with the most tokens a month first.

    Args:
        site: with its number of machines and fewer.
        tokens_per_s: the predicted speed of a number of machines.
    """
    long = Hours(8, 20, "daily", site.hours.time_zone)
    variants = {
        f"{nodes} {_machines(nodes)}, {name}": replace(
            site, nodes=nodes, coordinators=min(site.coordinators, nodes), **changes
        )
        for nodes in range(site.nodes, 0, -1)
        for name, changes in (
            ("on demand", {"provisioning": "on-demand"}),
            ("spot", {"provisioning": "spot"}),
            ("weekdays 9–19", {"provisioning": "schedule", "hours": Hours(time_zone=site.hours.time_zone)}),
            ("daily 8–20", {"provisioning": "schedule", "hours": long}),
        )
    }
    found = [estimate(each, tokens_per_s(each.nodes), name) for name, each in variants.items() if each != site]
    fitting = [each for each in found if not each.over_budget]
    return tuple(sorted(fitting, key=lambda each: -each.tokens_per_s * each.hours))


def said(site: Site) -> str:
    """Return what the first estimate comes to, beside the budget."""
    total = site.nodes * SAID_USD
    over = total - site.budget_usd
    verdict = f"over {site.budget_usd} by {over}" if over > 0 else f"within {site.budget_usd}"
    return f"At the {SAID_USD} USD a machine that were first said: {site.nodes} × {SAID_USD} = {total} USD, {verdict}."


def _machines(nodes: int) -> str:
    return "machine" if nodes == 1 else "machines"


def _usd(name: str) -> float:
    return PRICES[name].usd


def _sustained(share: float) -> float:
    """Return the share of a full month's price for running this share of the month."""
    quarters = len(_SUSTAINED)
    return sum(rate * min(max(share - number / quarters, 0), 1 / quarters) for number, rate in enumerate(_SUSTAINED))
