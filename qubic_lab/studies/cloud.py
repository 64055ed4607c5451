"""Rows of environment and network, judged by the plan of the cluster in the cloud and by what test beds have shown.

Nothing was made at Google: a row whose target takes machines there is partial at best.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qubic_lab.launch_plan import costs
from qubic_lab.launch_plan.network import SERVICES
from qubic_lab.launch_plan.resources import ALERTS, Ref, Resource, bootstrap, cluster
from qubic_lab.launch_plan.site import Site
from qubic_lab.studies.acceptance import AcceptanceRow, Criterion, joined
from qubic_lab.studies.finding import Finding, say

NAMED_WAYS = 4
"""Ways to stay within the budget that are named; the others are counted."""
PLAN = Criterion("9.1", "Cloud project as code", "a plan to review, idempotent, torn down by one command")
BUDGET = Criterion("9.2", "Three machines with one T4 each", "estimate and budget checked against each other")
PORTS = Criterion("9.3", "Network and firewall", "a test shows that no other port is opened")
SET_UP = Criterion("9.4", "Set-up of a node", "each part verified on its node, with a remedy per failure")


@dataclass(frozen=True)
class KeptScan:
    """A scan of ports between the hosts of a test bed; `wrong` are those that are not as planned."""

    day: str
    asked: int
    open: Mapping[str, Mapping[str, Sequence[int]]]
    wrong: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class KeptTrial:
    """A trial of a cluster in a test bed; `cut` is the host that was cut off and `reboot` another that rebooted."""

    day: str
    cluster: str
    cut: str
    reboot: str
    asked: int
    lost: int
    wrong: int
    duplicated: int


@dataclass(frozen=True)
class BedRecords:
    """The last scan and the last trials that are kept."""

    scan: KeptScan | None = None
    trials: Sequence[KeptTrial] = ()


def judge_plan(kept: BedRecords, site: Site | None = None) -> list[AcceptanceRow]:
    """Judge the rows for a cluster with these settings, by default those of `qubic-lab gcp` without any."""
    site = site or Site()
    resources = (*bootstrap(site), *cluster(site, ""))
    return [plan_row(site, resources), budget_row(site), ports_row(site, kept.scan), set_up_row(kept.trials)]


def plan_row(site: Site, resources: Sequence[Resource]) -> AcceptanceRow:
    """Judge 9.1 by what the plan itself shows: names are unique, all that is referred to is made, nothing stays."""
    named = [(each.kind, each.name) for each in resources]
    missing = {ref.name for each in resources for ref in _refs(each.properties)} - {name for _, name in named}
    stays = [each.name for each in resources if _outlives(each.properties)]
    plan = say(
        "{resources} resources, a budget of {budget} USD with mails at {alerts:percent} of it",
        resources=len(named),
        budget=site.budget_usd,
        alerts=ALERTS,
    )
    faults = say(
        "{twice} planned twice, {missing} missing that others refer to, {stays} left when the cluster is removed",
        twice=len(named) - len(set(named)),
        missing=len(missing),
        stays=len(stays),
    )
    whole = len(named) == len(set(named)) and not missing and not stays
    few = say("the plan was never carried out: a verdict takes an account of Google Cloud")
    return PLAN.row(joined(plan, faults), whole, few=few)


def budget_row(site: Site) -> AcceptanceRow:
    """Judge 9.2: the estimate stands beside the budget, and where it is over it, some other way fits."""
    asked = costs.estimate(site, float(site.nodes))
    # Which fit does not depend on their speed; machines stand for it, so the most machine hours come first.
    ways = costs.alternatives(site, float)
    compared = "{usd:,.0f} USD a month, over the budget of {budget} USD"
    if not asked.over_budget:
        compared = "{usd:,.0f} USD a month, within the budget of {budget} USD"
    said = say("as first said {usd} USD", usd=site.nodes * costs.SAID_USD)
    fitting = say("{count} other ways fit, such as {ways}", count=len(ways), ways=[*map(_way, ways[:NAMED_WAYS])])
    measured = joined(say(compared, usd=asked.monthly_usd, budget=site.budget_usd), said, fitting)
    reason = say("prices are those of lists, without tax")
    return BUDGET.row(measured, not asked.over_budget or bool(ways), reason)


def _way(estimate: costs.Estimate) -> Finding:
    return say(
        "{nodes:machine} {way} at {usd:,.0f} USD",
        nodes=estimate.nodes,
        way=say(estimate.name.partition(", ")[2]),
        usd=estimate.monthly_usd,
    )


def ports_row(site: Site, scan: KeptScan | None) -> AcceptanceRow:
    """Judge 9.3: the firewall opens the ports of services alone, and a scan of hosts with its rules found no other."""
    reached = ("nodes", "ssh", "public") if site.public else ("nodes", "ssh")
    opened = {ports for rule in site.network.rules for ports in rule.ports}
    more = opened - {each.ports for each in SERVICES.values() if each.reach in reached}
    plan = say("the rules open {ports} ports and ranges, {more} for no service", ports=len(opened), more=len(more))
    if scan is None:
        return PORTS.row(plan, not more, few=say("no scan of a test bed is kept, which a verdict takes"))
    found = say(
        "a scan of {hosts:machine} of a test bed on {day}, from each other and from outside, asked {asked:,} ports: "
        "{wrong} are not as planned",
        hosts=len(scan.open),
        day=scan.day,
        asked=scan.asked,
        wrong=len(scan.wrong),
    )
    reason = say("the test bed has the same rules, and Google's firewall was not asked")
    return PORTS.row(joined(plan, found), not more and not scan.wrong, reason)


def set_up_row(trials: Sequence[KeptTrial]) -> AcceptanceRow:
    """Judge 9.4 by clusters that were set up on the hosts of a test bed and asked while these failed."""
    if not trials:
        return SET_UP.row("", "not measured here", say("no trial of a test bed is kept"))
    told = [
        say(
            "{kind} in a test bed on {day}: of {asked} requests {lost} lost, {wrong} wrong, {twice} answered twice, "
            "while {cut} was cut off and {reboot} rebooted",
            kind=say(each.cluster),
            twice=each.duplicated,
            **{name: getattr(each, name) for name in ("day", "asked", "lost", "wrong", "cut", "reboot")},
        )
        for each in trials
    ]
    good = not any(each.lost or each.wrong or each.duplicated for each in trials)
    few = say("hosts of a test bed have no GPU: a verdict takes qubic-lab doctor on machines with one")
    return SET_UP.row(joined(*told), good, few=few)


def _refs(value: Any) -> Iterator[Ref]:
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _refs(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _refs(each)


def _outlives(properties: Mapping[str, Any]) -> bool:
    """Whether a resource, or its disk, stays where the cluster is removed."""
    disk = properties.get("boot_disk", {"auto_delete": True})
    kept = properties.get("deletion_policy", "DELETE") != "DELETE" or properties.get("deletion_protection")
    return bool(kept or not disk["auto_delete"])
