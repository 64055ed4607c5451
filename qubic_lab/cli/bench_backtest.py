"""`qubic-lab bench backtest`: whether the backtest's verdicts keep their promises, and how fast it is."""

from typing import TYPE_CHECKING, Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import print_json, print_table, progress_bar

if TYPE_CHECKING:
    from qubic_lab.bench.backtest import BacktestResult, Rate


def backtest(
    null: Annotated[int, typer.Option(help="Runs in which no signal has any skill; 0: none.")] = 1_000,
    effect: Annotated[int, typer.Option(help="Runs with an edge as large as the detectable one; 0: none.")] = 300,
    var: Annotated[int, typer.Option(help="Simulated series for value at risk; 0: none.")] = 0,
    var_bars: Annotated[int, typer.Option(help="Bars of each of these series.")] = 4_000,
    speed: Annotated[bool, typer.Option(help="Measure speed as well.")] = True,
    seed: Annotated[int, typer.Option(help="Of the simulations.")] = 0,
    json: options.Json = False,
) -> None:
    """Show how often the backtest is wrong on noise, and what it finds of an edge, on simulated prices."""
    from qubic_lab.bench.backtest import bench_backtest

    with progress_bar() as progress:
        result = bench_backtest(null, effect, var, var_bars=var_bars, speed=speed, seed=seed, progress=progress)
    if json:
        print_json(result.to_dict())
        return
    _show(result)


def _show(result: "BacktestResult") -> None:
    print_table(("what", "found (95 % interval)", "runs", "limit", "verdict"), _rows(result))
    verdict = "All within their limits" if result.within_limits else "NOT all within their limits"
    typer.echo(
        f"{verdict}. {result.seconds:.0f} s with {result.processes} processes; {result.machine}; commit {result.commit}"
    )


def _rows(result: "BacktestResult") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    if result.null:
        null = result.null
        found = f"{100 * null.false_rate:.1f} % ({100 * null.low:.1f} to {100 * null.high:.1f})"
        rows.append(("evidence on noise", found, str(null.runs), "at most 6.5 %", _met(null.within)))
        found = f"{null.mean_pbo:.3f} (error {null.pbo_error:.3f})"
        rows.append(("mean PBO on noise", found, str(null.runs), "0.45 to 0.55", _met(null.pbo_within)))
    if result.effect:
        effect, runs = result.effect, str(result.effect.runs)
        name = f"found, Sharpe ratio {effect.mean_sharpe:.2f}"
        rows.append((name, _shown(effect.detected), runs, "at least 75 %", _met(effect.detected_within)))
        rows.append(("truth in interval", _shown(effect.covered), runs, "at least 90 %", _met(effect.covered_within)))
    for row in result.var.rows if result.var else ():
        limit = f"at {'most' if row.model == 'GARCH-t' else 'least'} {100 * row.limit:.0f} %"
        name = f"{row.model} rejected, VaR {100 * row.level:g} %"
        rows.append((name, _shown(row.rejected), str(row.rejected.runs), limit, _met(row.within)))
    if result.speed:
        speed = result.speed
        name = f"{speed.bars:,} bars, all figures"
        rows.append((name, f"{speed.full_s:.2f} s", "3", "1 s", _met(speed.full_within)))
        name, found = f"a set of {speed.set_bars:,} bars", f"{speed.set_ms:.2f} ms"
        rows.append((name, found, str(speed.sets), f"{speed.pandas_ms:.2f} ms (pandas)", _met(speed.sets_within)))
    return rows


def _shown(rate: "Rate") -> str:
    return f"{100 * rate.value:.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f})"


def _met(within: bool) -> str:
    return "met" if within else "MISSED"
