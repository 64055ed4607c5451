"""`qubic-lab chaos`: faults done to a real cluster on this machine while clients ask it."""

from typing import Annotated

from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.bench import show
from qubic_lab.cli.console import print_table, progress_bar
from qubic_lab.errors import QubicLabError


def chaos(
    case: Annotated[list[str] | None, Option(help="A case; may be repeated.", show_default="all")] = None,
    requests: Annotated[int, Option(help="Requests of each case.")] = 200,
    list_: Annotated[bool, Option("--list", help="Show the cases, and do nothing.")] = False,
    json: options.Json = False,
) -> None:
    """Kill and cut off parts of a cluster; count what is lost.

    Each case has a new cluster of real processes on this machine, of which nothing is left. Every answer is compared
    with the undisturbed one. The exit status is 1 if a case is not as promised.
    """
    from qubic_lab.chaos.run import CASES, run_chaos

    if list_:
        rows = [(each.name, each.does, f"{each.limit_s:g}", each.missing() or "yes") for each in CASES.values()]
        print_table(("case", "what is done", "recovers within s", "can run here"), rows)
        return
    with progress_bar() as progress:
        result = run_chaos(case or (), requests, progress)
    show(result, json)
    if bad := [each.case for each in result.cases if each.passed is False]:
        raise QubicLabError(f"not as promised: {', '.join(bad)}: the output says what happened")
