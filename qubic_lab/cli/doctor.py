"""`qubic-lab doctor`: what is wrong with this machine, and the commands that mend it."""

import inspect
import os
import shlex
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, progress_bar, split_list
from qubic_lab.errors import QubicLabError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qubic_lab.doctor.finding import Finding, Verdict
    from qubic_lab.doctor.subject import Subject

COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED, "skip": None}
WORDS: dict[str, str] = {"ok": "ok", "warn": "warned of", "fail": "failed", "skip": "not applicable or not measured"}


def doctor(
    role: Annotated[str, Option(help="workbench (a machine for itself), coordinator or node.")] = "workbench",
    host: Annotated[
        str | None, Option(help="Its name in the plan, such as vm-2.", show_default="by its address")
    ] = None,
    nodes: Annotated[int, Option(help="Machines of the plan.")] = 3,
    only: Annotated[str | None, Option(metavar="CHECK,…", help="Run these checks alone.", show_default="all")] = None,
    fix: Annotated[bool, Option("--fix", help="Mend what can be mended safely.")] = False,
    model: Annotated[
        str | None, Option(help="Model that it is to run, as for `generate`.", show_default="the unit's, or smollm2")
    ] = None,
    ranks: Annotated[int, Option(help="Ranks on this machine.", min=1)] = 1,
    dtype: options.Dtype = "bf16",
    slots: options.Slots = 4,
    source: Annotated[
        str | None, Option(metavar="MODEL", help="What a bad split is made of again.", show_default="as at hand")
    ] = None,
    json: options.Json = False,
) -> None:
    """Check this machine, and name what mends each fault.

    The exit status is 1 if something fails. --fix migrates databases, renews certificates where the authority's key
    is, gives Redis the password of its URL, deletes what the cache does not need, and makes bad shards again.
    """
    from qubic_lab.doctor.examination import check_names
    from qubic_lab.doctor.subject import subject_of, variables_of
    from qubic_lab.settings import settings

    started = time.monotonic()
    os.environ.update({name: value for name, value in variables_of(role).items() if name not in os.environ})
    settings.cache_clear()
    given = {"role": role, "host": host, "nodes": nodes, "model": model, "ranks": ranks, "dtype": dtype}
    model = model or os.environ.get("MODEL") or "smollm2"
    names = check_names(split_list("--only", only) if only is not None else ())
    subject = replace(
        subject_of(role, host, nodes),
        model=model,
        ranks=ranks,
        dtype=dtype,
        slots=slots,
        source=source,
        links=_links,
        options=_words(given | {"slots": slots, "source": source}),
    )
    findings = _examined(subject, names, fix)
    seconds = time.monotonic() - started
    counts: Counter[str] = Counter(each.verdict for each in findings)
    if json:
        verdicts = {verdict: counts[verdict] for verdict in WORDS}
        found = [each.to_dict() for each in findings]
        print_json({"role": role, "healthy": not counts["fail"], "seconds": seconds, **verdicts, "findings": found})
    else:
        _print(findings)
        said = ", ".join(f"{counts[verdict]} {word}" for verdict, word in WORDS.items() if counts[verdict])
        note(f"{said}, in {seconds:.1f} s")
    if counts["fail"]:
        first = next(each for each in findings if each.verdict == "fail")
        raise QubicLabError(f"{counts['fail']} of {len(findings)} failed; first: {first.remedy or first.reason}")


def _examined(subject: "Subject", names: "Sequence[str]", fix: bool) -> "list[Finding]":
    """Return what the checks found; with `fix` after mending what can be mended."""
    from qubic_lab.doctor.examination import check_names, examine, mend

    with progress_bar() as progress:
        findings = examine(subject, names, progress)
        if fix and (again := mend(findings, note)):
            repeated = examine(subject, check_names(tuple(again)), progress)
            findings = [each for each in findings if each.check not in again] + repeated
            findings.sort(key=lambda each: names.index(each.check))
    return findings


def _words(given: Mapping[str, object]) -> str:
    """Return the options that differ from their defaults, as they are typed."""
    defaults = {name: each.default for name, each in inspect.signature(doctor).parameters.items()}
    words = [f"--{name} {shlex.quote(str(value))}" for name, value in given.items() if value != defaults[name]]
    return " ".join(words)


def _print(findings: "Sequence[Finding]") -> None:
    width = max(len(each.check) for each in findings)
    colour = None if "NO_COLOR" not in os.environ else False
    for each in findings:
        text = ": ".join(filter(None, (each.looked_at, each.value, each.reason)))
        typer.secho(f"{each.verdict:4}", fg=COLOURS[each.verdict], nl=False, color=colour)
        typer.echo(f"  {each.check:{width}}  {text}")
        if each.remedy and each.verdict != "ok":
            typer.echo(f"{'':{width + 8}}$ {each.remedy}")


def _links(subject: "Subject") -> "Iterator[Finding]":
    """Yield what `qubic-lab net check` finds, as far as a coordinator answers; links only from this host's nodes."""
    from qubic_lab.cli.net import run_checks
    from qubic_lab.cluster.links import LinkLimits
    from qubic_lab.doctor.finding import Finding, as_root, skip

    own = subject.host.name if subject.host else ""
    try:
        for each in run_checks((subject.coordinator,), LinkLimits(), False, lambda *_: None, own):
            if each.found == "no answer" and each.source == "here":
                why, start = f"no coordinator answers at {subject.coordinator}", "systemctl start qubic-orchestrator"
                if subject.host is None:
                    yield skip("links between nodes", why)
                    continue
                remedy = as_root(start) if subject.host.first else f"ssh {subject.hosts[0].name} sudo {start}"
                yield Finding("coordinator", "no answer", "fail", why, remedy)
                continue
            looked_at = f"{each.what}, {each.source} → {each.target}"
            verdict: Verdict = "fail" if each.trouble else "ok"
            yield Finding(looked_at, each.found, verdict, each.trouble, "qubic-lab net check" if each.trouble else "")
    except QubicLabError as error:  # for example without a token
        yield skip("links between nodes", str(error), "qubic-lab net check")
