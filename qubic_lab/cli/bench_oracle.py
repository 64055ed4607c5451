"""`qubic-lab bench oracle`: how soon the market oracle answers many at once."""

from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from qubic_lab.bench.oracle import OracleResult, RouteTimes


def oracle(
    rows: Annotated[
        int, typer.Option(help="Prices in the generated database, which is made once and kept.")
    ] = 1_000_000,
    texts: Annotated[int, typer.Option(help="Texts in it, each with two scores.")] = 100_000,
    clients: Annotated[int, typer.Option(help="Clients at once, each without a pause.")] = 50,
    requests: Annotated[
        int, typer.Option(help="Cold requests of each route: nobody has asked them before; of risk a fifth.")
    ] = 500,
    cached_requests: Annotated[int, typer.Option(help="Requests of each route that were asked before.")] = 5_000,
    json: options.Json = False,
) -> None:
    """Show how soon the market oracle answers, cold and from its cache, on a generated market."""
    from qubic_lab.bench.oracle import bench_oracle

    with progress_bar() as progress:
        result = bench_oracle(rows, texts, clients, requests, cached_requests, progress)
    if json:
        print_json(result.to_dict())
        return
    _show(result)


def _show(result: "OracleResult") -> None:
    header = ("route", "kind", "requests", "errors", "p50 ms", "p95 (95 % interval)", "p99", "limit")
    counts = (*header, "requests/s", "server CPU ms")
    print_table(counts, [_texts(each) for each in (*result.cold, *result.cached)])
    typer.echo("")
    for each in (*result.cold, *result.cached):
        if each.first_error:
            typer.echo(f"an error of {each.route}, {each.kind}: {each.first_error}")
    once = result.at_once
    typer.echo(
        f"{once.requests} first requests at once to {once.processes} processes: {once.computations} computation"
        f"{'' if once.computations == 1 else 's, NOT one'}, the last answer after {once.last_ms:.0f} ms, "
        f"{once.errors} errors"
    )
    typer.echo(
        f"{result.clients} clients without a pause; {result.price_rows:,} prices of {result.coins} coins, "
        f"{result.texts:,} texts, {result.scores:,} scores, {result.database_mib:.0f} MiB. "
        f"{'All within their limits' if result.within_limits else 'NOT all within their limits'}. "
        f"{result.machine}; commit {result.commit}"
    )


def _texts(each: "RouteTimes") -> tuple[str, ...]:
    counts = (each.route, each.kind, f"{each.requests:,}", str(each.errors))
    limit = "none" if each.limit_ms is None else f"{each.limit_ms:g}: {'met' if each.within_limit else 'MISSED'}"
    rest = (limit, f"{each.requests_per_s:.0f}")
    if each.times_ms is None:
        return (*counts, "-", "-", "-", *rest, f"{each.server_cpu_ms:.2f}")
    times = each.times_ms
    ends = [f"{end:.1f}" if end is not None else "?" for end in (times.p95_low, times.p95_high)]
    p95 = f"{times.p95:.1f} ({ends[0]} to {ends[1]})"
    return (*counts, f"{times.p50:.1f}", p95, f"{times.p99:.1f}", *rest, f"{each.server_cpu_ms:.2f}")
