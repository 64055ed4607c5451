"""`qubic-lab testbed …`: a cluster's machines on this one, with the plan's addresses, names and firewall."""

import subprocess
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, note, print_json, print_table
from qubic_lab.errors import QubicLabError, check_range
from qubic_lab.launch_plan.network import Network
from qubic_lab.provenance import machine, source_commit
from qubic_lab.testbed import bed
from qubic_lab.testbed import cluster as services
from qubic_lab.testbed.cluster import ClusterSpec
from qubic_lab.testbed.network import Shape, read_rate
from qubic_lab.testbed.scan import scan_bed

HostName = Annotated[str, Argument(metavar="HOST", help="Name of a host, such as vm-2.")]
MOST_CUT_S = 3_600
MOST_REQUESTS = 100_000


def up(
    nodes: Annotated[int, Option(help="Number of machines: vm-1 at 10.0.0.10, vm-2 at 10.0.0.20, and so on.")] = 3,
    rate: Annotated[
        str | None, Option(help="What each machine can send, such as 100mbit.", show_default="unlimited")
    ] = None,
    delay_ms: Annotated[float, Option(help="Added to each round trip between two machines.")] = 0.0,
    ssh_from: Annotated[str, Option(help="Address outside from which SSH is allowed.", show_default="none")] = "",
    public: Annotated[bool, Option("--public", help="Open the TLS proxy of vm-1 to everybody.")] = False,
    cluster: Annotated[
        str | None, Option(help="Also start the services: replicas, or one pipeline over all.", show_default="none")
    ] = None,
    model: options.Model = "smollm2",
    dtype: options.Dtype = "bf16",
    threads: Annotated[int, Option(help="Compute threads of each rank.")] = 1,
    json: options.Json = False,
) -> None:
    """Make the machines of a cluster as network namespaces of this one. Needs root.

    They have the addresses, the names and the firewall of the plan, and their own /etc, /opt, /var and processes. A
    machine that does not belong to the cluster is named outside.
    """
    from qubic_lab.model.resolve import resolve_model

    coordinators = 1 if cluster is None else min(services.COORDINATORS, nodes)
    network = Network(nodes, ssh_from, public, coordinators)
    shape = Shape(read_rate(rate) if rate else 0.0, delay_ms)
    if cluster is not None:
        spec = services.ClusterSpec(cluster, resolve_model(model), threads, dtype=dtype)
        services.check(network, spec)
    made = bed.up(network, shape)
    if cluster is not None:
        try:
            services.start(made, spec)
        except BaseException:
            bed.down()
            raise
    if json:
        print_json({"hosts": made.addresses, "shape": asdict(made.shape)})
        return
    typer.echo(f"{', '.join(made.addresses)} with {made.shape.text()}")
    note("a shell on a machine: qubic-lab testbed exec vm-1 -- bash; end it: qubic-lab testbed down")


def status(json: options.Json = False) -> None:
    """Show the machines and what runs on them."""
    found = bed.needed()
    processes = {name: bed.processes(name) for name in found.addresses}
    if json:
        print_json({"hosts": found.addresses, "shape": asdict(found.shape), "processes": processes})
        return
    typer.echo(found.shape.text())
    rows = [(name, address, str(processes[name])) for name, address in found.addresses.items()]
    print_table(("host", "address", "processes"), rows)


def execute(
    host: HostName, command: Annotated[list[str], Argument(metavar="COMMAND…", help="After --, what to run there.")]
) -> None:
    """Run a command on a machine, and end with its exit status."""
    line, environment = bed.command_on(bed.needed(), host, command)
    raise typer.Exit(subprocess.run(line, env=environment, check=False).returncode)


def scan(
    all_ports: Annotated[
        bool, Option("--all", help="All 65,535 ports, in place of those that matter and a sample.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Compare the open TCP ports between machines with the plan.

    Looks at the plan's ports, those where anything listens, and 1,000 others. The exit status is 1 if one is open that
    should not be, or answers where the firewall should keep quiet.
    """
    result = scan_bed(bed.needed(), all_ports)
    wrong = [asdict(each) for each in result.wrong]
    if json:
        print_json({"asked": result.asked, "open": result.open_ports, "wrong": wrong} | _measured_by())
    else:
        header = ("from", *result.open_ports)
        sources = list(next(iter(result.open_ports.values())))
        rows = [
            (source, *(", ".join(map(str, found.get(source, "-"))) or "none" for found in result.open_ports.values()))
            for source in sources
        ]
        print_table(header, rows)
        typer.echo(f"{result.asked:,} ports asked; a line is where from, a column whose")
        for each in result.wrong:
            typer.echo(f"{each.source} → {each.target}:{each.port}: {each.found}, the plan says {each.planned}")
    if wrong:
        raise QubicLabError(f"{len(wrong)} ports are not as planned: the output says which")


def measure(
    model: options.Model = "smollm2",
    dtype: options.Dtype = "bf16",
    tokens: Annotated[int, Option(help="New tokens of an answer.")] = 48,
    repeat: Annotated[int, Option(help="Answers for each shape of the links.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure a pipeline over three machines beside its prediction.

    The planner predicts it from the links as measured.

    Makes a bed for each of four shapes: with and without 20 ms, and 100 Mbit/s or no limit. The exit status is 1 if the
    median error is 15 % or more. No test bed may be up.
    """
    from qubic_lab.model.resolve import resolve_model
    from qubic_lab.testbed.measure import GOOD_ERROR, RANKS, SHAPES
    from qubic_lab.testbed.measure import measure as measure_all

    spec = ClusterSpec("pipeline", resolve_model(model), slots=1, dtype=dtype)
    result = measure_all(spec, tokens, repeat, note)
    if json:
        print_json(asdict(result))
    else:
        header = ("set", "least round trip ms", "Gbit/s", "predicted ms", "measured ms", "error")
        rows = [
            (
                *(cell.shape.text(), f"{cell.link.rtt_min_ms:.2f}", f"{cell.link.gbps:.3f}"),
                *(f"{cell.predicted_ms:.1f}", f"{cell.measured_ms:.1f}", f"{cell.error:+.1%}"),
            )
            for cell in result.cells
        ]
        print_table(header, rows)
        typer.echo(f"median error {result.median_error:.1%} over {len(SHAPES)} shapes; {RANKS} ranks of one thread")
    if result.median_error >= GOOD_ERROR:
        raise QubicLabError(f"the median error is {result.median_error:.1%}: the planner should be within 15 %")


def trial(
    requests: Annotated[int, Option(help="Number of requests.")] = 200,
    seconds: Annotated[int, Option(help="Their starts are spread over this time.")] = 60,
    tokens: Annotated[int, Option(help="New tokens of each answer.")] = 32,
    source: Annotated[str, Option(metavar="HOST", help="Where the client runs.")] = "vm-1",
    cut: Annotated[str, Option(metavar="HOST", help="Cut this one off for 20 s.", show_default="none")] = "",
    reboot: Annotated[str, Option(metavar="HOST", help="Then reboot this one.", show_default="none")] = "",
    json: options.Json = False,
) -> None:
    """Send requests to a cluster whose machines fail.

    The answers must be those of a single process, bit for bit. The exit status is 1 if one is lost, wrong, or was
    answered twice.
    """
    from qubic_lab.testbed.trial import TrialPlan, run

    found, spec = bed.needed(), services.read()
    for host in filter(None, (source, cut, reboot)):
        found.folder(host)
    check_range("--requests", requests, 1, MOST_REQUESTS)
    plan = TrialPlan(requests, seconds, tokens, source, cut, reboot=reboot)
    result = run(found, spec, plan, note)
    if json:
        asked = {"cluster": spec.kind, "cut": cut, "reboot": reboot}
        print_json(asdict(result) | asked | _measured_by())
    else:
        print_table(("figure", "value"), [(name, str(value)) for name, value in asdict(result).items()])
    if not result.good:
        raise QubicLabError(f"{result.lost} answers lost, {result.wrong} wrong, {result.duplicated} duplicated")


def cut(host: HostName, seconds: Annotated[int, Option(help="For how long nothing passes its cable.")] = 20) -> None:
    """Cut a machine off the network for a while."""
    check_range("--seconds", seconds, 1, MOST_CUT_S)
    with bed.cut(bed.needed(), host):
        time.sleep(seconds)
    typer.echo(f"{host} was cut off for {seconds} s")


def reboot(host: HostName) -> None:
    """Kill all of a machine and start its units again.

    Its disk stays.
    """
    bed.reboot(bed.needed(), host)
    typer.echo(f"{host} starts")


def down() -> None:
    """End all machines and remove all that belongs to them."""
    if bed.down():
        typer.echo("ended the test bed")
    else:
        note("no test bed is up")


def _measured_by() -> dict[str, str]:
    """Return when, by which commit and on which machine."""
    return {"day": f"{datetime.now(UTC):%Y-%m-%d}", "commit": str(source_commit()), "machine": str(machine())}


COMMANDS: Commands = {
    "up": (up, "--rate 100mbit --delay-ms 20"),
    "status": (status, "--json"),
    "exec": (execute, "vm-1 -- ping -c 3 vm-2"),
    "scan": (scan, "--all"),
    "measure": (measure, "--model smollm2 --tokens 48"),
    "trial": (trial, "--cut vm-2 --reboot vm-3"),
    "cut": (cut, "vm-2 --seconds 20"),
    "reboot": (reboot, "vm-2"),
    "down": (down, ""),
}
