"""`qubic-lab gcp …`: a cluster on Google Cloud: what would be made, what it costs, making it, removing it."""

import json as json_format
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from qubic_lab.checked_yaml import check_content, read_yaml
from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, note, print_json, print_table
from qubic_lab.core import attributes
from qubic_lab.errors import InputError, QubicLabError
from qubic_lab.launch_plan import costs, tables
from qubic_lab.launch_plan import resources as plans
from qubic_lab.launch_plan.costs import Estimate
from qubic_lab.launch_plan.engine import Engine, startup_script
from qubic_lab.launch_plan.resources import Resource
from qubic_lab.launch_plan.site import Site
from qubic_lab.settings import settings

Config = Annotated[Path | None, Option(metavar="FILE", help="YAML file with settings.", show_default="defaults")]
Set = Annotated[
    list[str] | None, Option("--set", metavar="NAME=VALUE", help="One setting, such as nodes=2; repeatable.")
]
Yes = Annotated[bool, Option("--yes", help="Do not ask.")]
LINK = "10Gbps:0.1ms"


def plan(config: Config = None, set_: Set = None, json: options.Json = False) -> None:
    """Show what would be made, who may reach which port, and the cost.

    Needs no account, no network and no Pulumi.
    """
    site = read_site(config, set_)
    parts = {"bootstrap": plans.bootstrap(site), "cluster": _cluster(site)}
    estimate = _estimate(site)
    if json:
        print_json(
            {
                "settings": site.to_dict(),
                "resources": [{"part": part, **each} for part, made in parts.items() for each in plans.plain(made)],
                "machines": [dict(zip(tables.MACHINES, row, strict=True)) for row in tables.machine_rows(site)],
                "ports": [dict(zip(tables.PORTS, row, strict=True)) for row in tables.port_rows(site)],
                "roles": [dict(zip(tables.ROLES, row, strict=True)) for row in tables.role_rows(site)],
                "monthly_usd": round(estimate.monthly_usd, 2),
                "over_budget": estimate.over_budget,
            }
        )
        return
    print_table(tables.MACHINES, tables.machine_rows(site))
    typer.echo("\nOpen ports; all others are closed, and what is not listed listens on loopback\n")
    print_table(tables.PORTS, tables.port_rows(site))
    typer.echo(f"\n{tables.closed(site)}\n\nRoles, beyond those of the owner in the new project\n")
    print_table(tables.ROLES, tables.role_rows(site))
    for part, made in parts.items():
        who = "once, by an owner" if part == "bootstrap" else f"by {site.deploy_account}"
        typer.echo(f"\n{part}: {len(made)} resources, made {who}\n")
        print_table(("what", "names"), _kinds(made))
    typer.echo("")
    _show_cost(estimate, site)


def cost(
    config: Config = None,
    set_: Set = None,
    batch: Annotated[int, Option(help="Requests per lane, as of qubic-lab plan.")] = 1,
    json: options.Json = False,
) -> None:
    """Show the cost of a month beside the budget, and what fits it.

    Tokens/s are the prediction of `qubic-lab plan` for DeepSeek on as many T4s; dollars per million tokens assume that
    all hours are fully used. Prices are lists with their sources; nothing is asked.
    """
    site = read_site(config, set_)
    estimate = _estimate(site, batch)
    others = costs.alternatives(site, lambda nodes: tokens_per_s(nodes, batch))
    if json:
        print_json(
            _estimate_fields(estimate)
            | {"lines": [asdict(line) for line in estimate.lines], "first_said": costs.said(site)}
            | {"alternatives": [_estimate_fields(each) for each in others]}
            | {
                "prices": {name: asdict(price) for name, price in costs.PRICES.items()},
                "not_counted": costs.NOT_COUNTED,
            }
        )
        return
    print_table(("part", "USD a month"), [(line.what, f"{line.usd:,.2f}") for line in estimate.lines])
    typer.echo("")
    _show_cost(estimate, site)
    typer.echo(f"\nWhat fits {site.budget_usd} USD, most tokens a month first\n" if others else "\nNothing fits.")
    if others:
        header = ("way", "USD a month", "hours", "tokens/s", "USD a million tokens")
        print_table(header, [_estimate_row(each) for each in (estimate, *others)])
    typer.echo(
        f"\nNot counted: {costs.NOT_COUNTED}.\nSpot machines may be stopped at any time, and their price changes."
    )
    for source in dict.fromkeys(price.source for price in costs.PRICES.values()):
        names = [f"{name} {p.usd} USD per {p.unit}" for name, p in costs.PRICES.items() if p.source == source]
        typer.echo(f"{source}: {'; '.join(names)}.")


def up(
    config: Config = None,
    set_: Set = None,
    bootstrap: Annotated[bool, Option("--bootstrap", help="The owner's part: project, budget, accounts.")] = False,
    over_budget: Annotated[bool, Option("--over-budget", help="Accept a cost over the budget.")] = False,
    yes: Yes = False,
) -> None:
    """Make the cluster, or change it to what the settings say.

    Pulumi does it, with the login of `gcloud auth application-default login`, and first shows what would change.
    """
    site = read_site(config, set_)
    estimate = _estimate(site)
    if bootstrap and not site.billing_account:
        raise InputError("billing_account is not set: give the one of `gcloud billing accounts list`")
    if not bootstrap and not site.ssh_from:
        raise InputError("ssh_from is not set, so nobody could log in: give your address, or iap")
    if not bootstrap and estimate.over_budget and not over_budget:
        raise InputError(
            f"it costs about {estimate.monthly_usd:,.0f} USD a month, over the budget of {site.budget_usd}: "
            "choose what fits (qubic-lab gcp cost), or --over-budget"
        )
    part, made = ("bootstrap", plans.bootstrap(site)) if bootstrap else ("cluster", _cluster(site))
    engine = _engine()
    _check_can_ask(yes)
    if not yes:
        engine.preview(part, plans.plain(made))
        _ask(f"Make {part} so, in {site.project}?")
    engine.up(part, plans.plain(made))
    if not bootstrap:
        _site_file().write_text(json_format.dumps(site.to_dict()), encoding="utf-8")
    typer.echo(f"{part} is up" + ("" if bootstrap else f": about {estimate.monthly_usd:,.0f} USD a month"))


def status(
    refresh: Annotated[bool, Option("--refresh", help="Ask Google first; else what Pulumi last knew.")] = False,
    json: options.Json = False,
) -> None:
    """Compare what exists with what was asked for at the last `up`.

    The exit status is 1 if something is missing or left over.
    """
    engine = _engine()
    if refresh:
        engine.refresh("cluster")
    there = {each.name: each for each in engine.made("cluster")}
    planned = [each.name for each in _cluster(_last_site()) if each.kind != "Provider"] if there else []
    states = {name: "made" if name in there else "missing" for name in planned}
    states |= {name: "left over" for name in there if name not in states}
    rows = [(name, state, str(_outputs(there, name).get("currentStatus", ""))) for name, state in states.items()]
    wrong = sum(state != "made" for state in states.values())
    if json:
        header = ("name", "state", "machine")
        print_json({"resources": [dict(zip(header, row, strict=True)) for row in rows], "wrong": wrong})
    elif rows:
        print_table(("resource", "state", "machine"), rows)
    else:
        typer.echo("nothing is made: qubic-lab gcp up makes it")
    if wrong:
        raise QubicLabError(f"{wrong} of {len(states)} resources are not as asked for: run qubic-lab gcp up")


def ssh(
    user: Annotated[str | None, Option(help="Name on the machines, as OS Login has it.", show_default="yours")] = None,
    json: options.Json = False,
) -> None:
    """Print aliases of the machines for ~/.ssh/config.

    From one address they lead through vm-1; with `iap` through Google's proxy, which needs gcloud.
    """
    there = {each.name: each for each in _engine().made("cluster")}
    if "vm-1" not in there:
        raise QubicLabError("vm-1 does not exist: qubic-lab gcp up makes it")
    aliases = tables.ssh_aliases(_last_site(), str(_outputs(there, "vm-1-outside").get("address", "")), user)
    if json:
        print_json({"hosts": aliases})
        return
    for alias in aliases:
        name, *lines = alias.items()
        typer.echo(f"Host {name[1]}\n" + "".join(f"  {key} {value}\n" for key, value in lines))


def down(
    everything: Annotated[bool, Option("--all", help="Also the owner's part: project, budget, accounts.")] = False,
    yes: Yes = False,
) -> None:
    """Remove the cluster: machines, disks, addresses, network.

    Nothing of it is left, and nothing on its disks is kept: back up first.
    """
    engine = _engine()
    parts = ("cluster", "bootstrap") if everything else ("cluster",)
    found = {part: len(engine.made(part)) for part in parts}
    if not any(found.values()):
        note("nothing is made")
        return
    what = " and ".join(f"{part} ({count} resources)" for part, count in found.items() if count)
    _check_can_ask(yes)
    if not yes:
        _ask(f"Remove {what}, with all data on the disks?")
    for part in parts:
        engine.down(part)
    _site_file().unlink(missing_ok=True)
    typer.echo(f"removed {what}")


def read_site(config: Path | None, changes: Sequence[str] | None) -> Site:
    """Return the settings of a file, changed by `NAME=VALUE`, where a name may be as hours.start.

    Raises:
        InputError: a name or value is wrong.
    """
    import yaml

    content = (read_yaml(config) or {}) if config else {}
    if not isinstance(content, dict):
        raise InputError(f"{config} has no names: write settings as NAME: VALUE")
    for change in changes or ():
        name, equals, text = change.partition("=")
        if not equals:
            raise InputError(f"--set is {change!r}: give NAME=VALUE, such as nodes=2")
        *outer, last = name.split(".")
        place = content
        for step in outer:
            place = place.setdefault(step, {})
        try:
            value = yaml.safe_load(text) if text else ""
        except yaml.YAMLError:
            raise InputError(f"--set is {change!r}: the value is no YAML") from None
        # 24.04 is a text, and so are addresses; a list may be written without brackets
        place[last] = _as_given(last, text, value)
    return check_content(Site, content, config or "")


def _as_given(name: str, text: str, value: Any) -> Any:
    if name in ("zones", "operators") and not isinstance(value, list):
        return [part.strip() for part in text.split(",")] if text else []
    return text if name == "ubuntu" else value


@cache
def tokens_per_s(nodes: int, batch: int = 1) -> float:
    """Return the predicted speed of the best plan for DeepSeek on a number of T4s."""
    from qubic_lab.cli.models import advise

    advice = advise("deepseek", ",".join(["t4"] * nodes), LINK, "throughput", 1024, batch, "fp16", 512)
    return max(each.tokens_per_s for each in advice.plans)


def _cluster(site: Site) -> tuple[Resource, ...]:
    return plans.cluster(site, startup_script())


def _kinds(made: Sequence[Resource]) -> list[tuple[str, str]]:
    names: dict[str, list[str]] = {}
    for each in made:
        names.setdefault(each.kind, []).append(each.name.removeprefix("service-"))
    return [(kind, ", ".join(those)) for kind, those in names.items()]


def _estimate(site: Site, batch: int = 1) -> Estimate:
    return costs.estimate(site, tokens_per_s(site.nodes, batch))


def _show_cost(estimate: Estimate, site: Site) -> None:
    verdict = "OVER" if estimate.over_budget else "within"
    typer.echo(f"About {estimate.monthly_usd:,.0f} USD a month, {verdict} the budget of {site.budget_usd} USD.")
    typer.echo(costs.said(site))
    if estimate.over_budget:
        typer.echo("The budget only sends mails, at 80 and 90 %: it stops nothing. qubic-lab gcp cost shows what fits.")


def _estimate_fields(estimate: Estimate) -> dict[str, Any]:
    return {
        **attributes(estimate, "name", "nodes", "provisioning"),
        "hours": round(estimate.hours, 1),
        "monthly_usd": round(estimate.monthly_usd, 2),
        **attributes(estimate, "budget_usd", "over_budget"),
        "tokens_per_s": round(estimate.tokens_per_s, 1),
        "usd_per_million_tokens": round(estimate.usd_per_million_tokens, 3),
    }


def _estimate_row(estimate: Estimate) -> tuple[str, ...]:
    over = " (over)" if estimate.over_budget else ""
    return (
        estimate.name,
        f"{estimate.monthly_usd:,.0f}{over}",
        f"{estimate.hours:.0f}",
        f"{estimate.tokens_per_s:.0f}",
        f"{estimate.usd_per_million_tokens:.2f}",
    )


def _engine() -> Engine:
    return Engine(_site_file().parent, settings().peers / "pulumi", typer.echo)


def _site_file() -> Path:
    """Return the file with the settings of the last `up`."""
    return settings().data / "gcp" / "site.json"


def _last_site() -> Site:
    return read_site(_site_file(), None)


def _outputs(there: Any, name: str) -> dict[str, Any]:
    return dict(there[name].outputs) if name in there else {}


def _check_can_ask(yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise InputError("there is no terminal to ask: give --yes")


def _ask(question: str) -> None:
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise QubicLabError("nothing was changed")


COMMANDS: Commands = {
    "plan": (plan, "--set ssh_from=203.0.113.7"),
    "cost": (cost, "--set provisioning=spot"),
    "up": (up, "--config gcp.yaml"),
    "status": (status, "--refresh"),
    "ssh": (ssh, "--user alice_example_com"),
    "down": (down, "--yes"),
}
