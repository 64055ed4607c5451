"""Why two choices? Sweeps of the balancers' simulation, what they say in words, and pictures.

All balancers get equal requests, so they are compared pair by pair; intervals are over seeds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from statistics import fmean, stdev
from typing import Any, cast

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from qubic_lab.cluster.balance import DEFAULT_BALANCER
from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.studies.balancing_simulation import (
    HERD_WINDOW_S,
    RULES,
    Setting,
    measure,
    simulate,
    window_counts,
)
from qubic_lab.studies.style import DARK, INK, PALE, STYLE, WIDTH_INCHES

Sweep = Mapping[str, Any]
Cell = Mapping[str, Any]

CONFIDENCE = 0.95
LEAST_SEEDS = 2
HEADLINE = "slowdown_p99"
"""What verdicts go by: time ÷ time alone on the fastest node, of the 99th of 100 requests."""
COMPARED = ("time_mean_s", "time_p99_s", HEADLINE)
BY_TURNS = ("round-robin", "weighted-round-robin")
BY_TOKENS = ("two-choices", "two-choices-by-speed", "least-tokens")


@cache  # sweeps share settings
def outcomes(setting: Setting, balancer: str, seed: int) -> dict[str, float]:
    """Return what a balancer comes to on the requests of a seed: see `measure`."""
    return measure(simulate(setting, balancer, seed), setting)


def noticed(setting: Setting, balancer: str) -> Setting:
    """Return the setting without what a balancer does not look at: so one run serves for several settings."""
    if balancer in BY_TURNS:
        return replace(setting, staleness_s=0.0, knows="limit")
    return setting if balancer in BY_TOKENS else replace(setting, knows="limit")


def sweep(
    setting: Setting,
    factor: str,
    values: Sequence[Any],
    balancers: Sequence[str],
    seeds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Run balancers with several values of one factor, a field of `Setting`, and return plain values.

    A cell has a value, a balancer, the samples of all seeds, their means with t intervals, and `against`: ratios to
    two choices on the same requests, as geometric means with t intervals of the logarithms.

    Raises:
        InputError: an unknown factor or balancer, two choices are not among the balancers, a value is out of its
            range, or there are fewer than 2 seeds.
    """
    check_choice("factor", factor, FACTORS)
    check_at_least("seeds", seeds, LEAST_SEEDS)
    for name in balancers:
        check_choice("balancer", name, RULES)
    check_choice("balancer", DEFAULT_BALANCER, balancers)
    changed = [_with(setting, factor, value) for value in values]
    cells: list[dict[str, Any]] = []
    for value, each in zip(values, changed, strict=True):
        found: dict[str, list[dict[str, float]]] = {}
        for name in balancers:
            if progress is not None:
                progress(f"{FACTORS[factor].say(value)}, {name}", len(cells) + len(found), len(values) * len(balancers))
            found[name] = [outcomes(noticed(each, name), name, seed) for seed in range(seeds)]
        cells += [_cell(value, name, runs, found[DEFAULT_BALANCER]) for name, runs in found.items()]
    return {"factor": factor, "seeds": seeds, "setting": _plain(setting), "cells": cells}


def _with(setting: Setting, factor: str, value: Any) -> Setting:
    change: dict[str, Any] = {factor: tuple(value) if isinstance(value, list) else value}
    return replace(setting, **change)


def _plain(setting: Setting) -> dict[str, Any]:
    return asdict(setting) | {"speeds": list(setting.speeds)}  # as a cell's value has it


def _setting(sweep: Sweep) -> Setting:
    return Setting(**sweep["setting"] | {"speeds": tuple(sweep["setting"]["speeds"])})


def _cell(
    value: Any, balancer: str, runs: Sequence[dict[str, float]], default: Sequence[dict[str, float]]
) -> dict[str, Any]:
    samples = {name: [run[name] for run in runs] for name in runs[0]}
    return {
        "value": value,
        "balancer": balancer,
        "samples": samples,
        "outcomes": {name: mean_interval(values) for name, values in samples.items()},
        "against": {name: ratio_interval(samples[name], [run[name] for run in default]) for name in COMPARED},
    }


def mean_interval(values: Sequence[float]) -> dict[str, float]:
    """Return mean, low and high: Student's interval of 95 %, of at least 2 values."""
    mean = fmean(values)
    half_width = t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half_width, "high": mean + half_width}


def ratio_interval(values: Sequence[float], base: Sequence[float]) -> dict[str, float]:
    """Return the geometric mean of paired ratios, low and high: Student's interval of 95 % of the logarithms."""
    logs = mean_interval([math.log(value / other) for value, other in zip(values, base, strict=True)])
    return {"ratio" if name == "mean" else name: math.exp(value) for name, value in logs.items()}


def t_quantile(share: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution for a share of 0.5 or more.

    Source of the distribution: M. Abramowitz, I. A. Stegun, "Handbook of Mathematical Functions", 26.7.3 and 26.7.4.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / √degrees
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, degrees) < share else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def _t_share(angle: float, degrees: int) -> float:
    odd = degrees % 2
    term = math.cos(angle) if odd else 1.0
    total = 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return (1 + inside) / 2


@dataclass(frozen=True)
class Factor:
    """A field of `Setting` that is swept: how an axis names it, and how a sentence says a value of it."""

    axis: str
    say: Callable[[Any], str]


def _ratio(speeds: Sequence[int]) -> str:
    return ":".join(map(str, speeds))


def _speeds(speeds: Sequence[int]) -> str:
    return f"speeds {_ratio(speeds)}" if len(set(speeds)) > 1 else "equal speeds"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


FACTORS = {
    "staleness_s": Factor("time between heartbeats (s)", lambda s: f"heartbeats every {s:g} s" if s else "fresh loads"),
    "load": Factor("load (tokens asked for ÷ possible)", lambda load: f"load {load:g}"),
    "coordinators": Factor("coordinators (number)", lambda number: _count(number, "coordinator")),
    "speeds": Factor("speeds of the nodes, in turn", _speeds),
    "slots": Factor("slots of a node (number)", lambda number: f"{_count(number, 'slot')} a node"),
    "knows": Factor("what is known of an answer's length", lambda name: f"the {name} known"),
    "length_tail": Factor("tail of answers' lengths (exponent)", lambda tail: f"tail {tail:g}"),
    "nodes": Factor("nodes (number)", lambda number: _count(number, "node")),
}
LOOKS = {
    "two-choices": ("-", "o", DARK),
    "two-choices-by-speed": ("-", "o", "white"),
    "least-tokens": ("--", "s", DARK),
    "least-connections": ("--", "s", "white"),
    "resource-aware": (":", "^", "white"),
    "weighted-round-robin": ("-.", "D", "white"),
    "round-robin": ("-.", "D", PALE),
}
"""Line, mark and its filling."""
AXES = {"time_p99_s": "p99 of time (s)", HEADLINE: "p99 of slowdown"}
HERDS_SHOWN = ("least-tokens", "two-choices")


def verdict(cell: Cell) -> str:
    """Say how a balancer's p99 of slowdown compares with that of two choices."""
    against = cell["against"][HEADLINE]
    if cell["balancer"] == DEFAULT_BALANCER:
        return ""
    return "better" if against["high"] < 1 else "worse" if against["low"] > 1 else "no difference shown"


def cell_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """Return one row a value and balancer; `low` and `high` are 95 % intervals, `ratio` is to two choices."""
    return [
        {
            sweep["factor"]: _ratio(cell["value"]) if sweep["factor"] == "speeds" else cell["value"],
            "balancer": cell["balancer"],
            "slowdown_p99": cell["outcomes"]["slowdown_p99"]["mean"],
            "low": cell["outcomes"]["slowdown_p99"]["low"],
            "high": cell["outcomes"]["slowdown_p99"]["high"],
            "ratio": cell["against"]["slowdown_p99"]["ratio"],
            "ratio_low": cell["against"]["slowdown_p99"]["low"],
            "ratio_high": cell["against"]["slowdown_p99"]["high"],
            "verdict": verdict(cell),
            **{name: interval["mean"] for name, interval in cell["outcomes"].items() if name != "slowdown_p99"},
        }
        for cell in sweep["cells"]
    ]


def find(sweep: Sweep, value: Any, balancer: str) -> Cell:
    """Return the cell of a value and a balancer.

    Raises:
        InputError: the sweep has none.
    """
    for cell in sweep["cells"]:
        if (cell["value"], cell["balancer"]) == (value, balancer):
            return cast(Cell, cell)
    raise InputError(f"{balancer} was not run with {FACTORS[sweep['factor']].say(value)}: add both to the sweep")


def findings(sweeps: Sequence[Sweep]) -> list[str]:
    """Say where two choices are the best, where they are not, and where no difference was shown.

    The first sweep has all balancers, and among its values the one that the others share.
    """
    by_factor = {each["factor"]: each for each in sweeps}
    return [
        *_base_sentences(sweeps[0]),
        _verdict_sentence(sweeps, "better", "Better than two-choices, as multiples of its p99"),
        _verdict_sentence(sweeps, "no difference shown", "No difference from two-choices was shown"),
        _by_speed_sentence(by_factor["speeds"]),
        _knows_sentence(by_factor["knows"]),
        _growth_sentence(by_factor["nodes"]),
    ]


def _base_sentences(sweep: Sweep) -> list[str]:
    setting = sweep["setting"]
    base = setting[sweep["factor"]]
    cells = [cell for cell in sweep["cells"] if cell["value"] == base]
    own = find(sweep, base, DEFAULT_BALANCER)["outcomes"][HEADLINE]
    others = sorted(
        (cell for cell in cells if cell["balancer"] != DEFAULT_BALANCER),
        key=lambda cell: float(cell["against"][HEADLINE]["ratio"]),
    )
    herds = sorted(cells, key=lambda cell: -float(cell["outcomes"]["herd_share"]["mean"]))
    told = ("nodes", "speeds", "slots", "coordinators", "staleness_s", "load")
    where = ", ".join(FACTORS[factor].say(setting[factor]) for factor in told)
    shares = [f"{cell['balancer']} {cell['outcomes']['herd_share']['mean']:.0%}" for cell in herds]
    return [
        f"Simulated, {where}: with two-choices 99 of 100 answers take at most {own['mean']:.1f} times as long as alone "
        f"on the fastest node (95 % interval {own['low']:.1f} to {own['high']:.1f}, {sweep['seeds']} seeds); as "
        f"multiples of that: {', '.join(map(_named_ratio, others))}.",
        f"Of the requests that come in {HERD_WINDOW_S:g} s the node with most gets, with {', '.join(shares)}.",
    ]


def _named_ratio(cell: Cell) -> str:
    return f"{cell['balancer']} {_interval(cell['against'][HEADLINE])}"


def _interval(ratio: Mapping[str, float]) -> str:
    return f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"


def _verdict_sentence(sweeps: Sequence[Sweep], word: str, begin: str) -> str:
    """Name the balancers of a verdict, by setting; drawing by speed has a sentence of its own."""
    found: dict[str, list[str]] = {}
    for sweep in sweeps:
        for cell in sweep["cells"]:
            is_told = cell["value"] == sweep["setting"][sweep["factor"]] and sweep is not sweeps[0]
            if verdict(cell) == word and cell["balancer"] != "two-choices-by-speed" and not is_told:
                found.setdefault(FACTORS[sweep["factor"]].say(cell["value"]), []).append(_named_ratio(cell))
    said = "; ".join(f"with {place} {' and '.join(names)}" for place, names in found.items())
    return f"{begin}: {said or 'none'}."


def _by_speed_sentence(sweep: Sweep) -> str:
    said = []
    for cell in sweep["cells"]:
        if cell["balancer"] != "two-choices-by-speed":
            continue
        most = most_load(_with(_setting(sweep), "speeds", cell["value"]).node_speeds)
        said.append(
            f"with {_speeds(cell['value'])}: {_interval(cell['against'][HEADLINE])} times the p99 and "
            f"{_interval(cell['against']['time_mean_s'])} times the mean time"
            + (f" (drawn evenly they cannot carry more than load {most:.2f})" if most < 1 else "")
        )
    return f"Drawn by speed and not evenly, two choices have, {'; '.join(said)}."


def most_load(speeds: Sequence[int]) -> float:
    """Return the load that nodes of these speeds cannot pass when two of them are drawn evenly, at most 1.

    A request of which both draws are among the k slowest stays with these. Their part of all speeds ÷ the part of
    such requests is the bound; the smallest counts. Source: S. G. Foss, N. I. Chernova, "On the stability of a
    partially accessible multi-station queue with state-dependent routing", Queueing Systems 29 (1998), 55-73.
    """
    slowest_first = sorted(speeds)
    number, most = len(speeds), 1.0
    for count in range(2, number + 1):
        speed_share = sum(slowest_first[:count]) / sum(speeds)
        most = min(most, speed_share / (math.comb(count, 2) / math.comb(number, 2)))
    return most


def _knows_sentence(sweep: Sweep) -> str:
    samples = {
        cell["value"]: cell["samples"][HEADLINE] for cell in sweep["cells"] if cell["balancer"] == DEFAULT_BALANCER
    }
    limit = samples.pop("limit")
    said = [f"{name} {_interval(ratio_interval(values, limit))}" for name, values in samples.items()]
    return (
        "Told more of an answer's length than its limit, two-choices have this multiple of the p99 of slowdown: "
        f"{', '.join(said)}."
    )


def _growth_sentence(sweep: Sweep) -> str:
    few, many = (extreme(cell["value"] for cell in sweep["cells"]) for extreme in (min, max))
    said = []
    for balancer in dict.fromkeys(cell["balancer"] for cell in sweep["cells"]):
        small, large = (find(sweep, number, balancer)["outcomes"][HEADLINE]["mean"] for number in (few, many))
        said.append(f"{balancer} {small:.1f} and {large:.1f}")
    return f"The p99 of slowdown with {few:,} and with {_count(many, 'node')}: {', '.join(said)}."


def curves(sweep: Sweep) -> Figure:
    """Draw the 99th percentiles of time and of slowdown against the swept values, with 95 % intervals."""
    values = list(dict.fromkeys(map(_tick, (cell["value"] for cell in sweep["cells"]))))
    balancers = list(dict.fromkeys(cell["balancer"] for cell in sweep["cells"]))
    with plt.rc_context(STYLE | {"axes.grid.axis": "y"}):
        figure, panels = plt.subplots(2, sharex=True, figsize=(WIDTH_INCHES, 5.0), layout="constrained")
        for axes, (name, label) in zip(panels, AXES.items(), strict=True):
            for number, balancer in enumerate(balancers):
                aside = 0.3 * (number / max(1, len(balancers) - 1) - 0.5)  # so that intervals do not hide each other
                _draw_curve(axes, sweep, balancer, name, aside)
            axes.set_ylabel(label)
        panels[0].set_ylim(bottom=0)
        panels[1].set_yscale("log")
        panels[1].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[1].yaxis.set_major_formatter("{x:g}")
        panels[1].yaxis.set_minor_formatter("")
        panels[1].set_xticks(range(len(values)), values)
        panels[1].set_xlabel(FACTORS[sweep["factor"]].axis)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2)
    return figure


def _draw_curve(axes: Axes, sweep: Sweep, balancer: str, name: str, aside: float) -> None:
    line, mark, fill = LOOKS[balancer]
    intervals = [cell["outcomes"][name] for cell in sweep["cells"] if cell["balancer"] == balancer]
    places = [place + aside for place in range(len(intervals))]
    axes.plot(
        places,
        [each["mean"] for each in intervals],
        line,
        marker=mark,
        markerfacecolor=fill,
        markersize=5,
        linewidth=1.2,
        color=DARK,
        label=balancer,
    )
    least = min(each["mean"] for each in intervals) / 2  # an interval that reaches 0 has no end on this axis
    for place, each in zip(places, intervals, strict=True):
        axes.plot([place] * 2, [max(each["low"], least), each["high"]], "-", color=INK, linewidth=0.8)


def _tick(value: Any) -> str:
    if isinstance(value, list):
        return _ratio(value)
    return value if isinstance(value, str) else f"{value:g}"


def herds(setting: Setting, seed: int = 0) -> Figure:
    """Draw where the requests of each 5 s went, by the least tokens of all and by two choices."""
    counts = {name: window_counts(simulate(setting, name, seed), setting) for name in HERDS_SHOWN}
    order = sorted(range(setting.nodes), key=lambda number: -setting.node_speeds[number])
    most = max(int(each.max()) for each in counts.values())
    shades = LinearSegmentedColormap.from_list("requests", ["white", PALE, DARK, INK])
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, panels = plt.subplots(len(counts), sharex=True, figsize=(WIDTH_INCHES, 4.6), layout="constrained")
        for axes, (name, each) in zip(panels, counts.items(), strict=True):
            extent = (0.0, len(each) * HERD_WINDOW_S, setting.nodes + 0.5, 0.5)
            image = axes.imshow(
                each[:, order].T, shades, vmin=0, vmax=most, aspect="auto", interpolation="none", extent=extent
            )
            axes.set_title(name, loc="left", fontsize=10)
            axes.set_ylabel("nodes, fastest on top")
        panels[-1].set_xlabel("time since counting began (s)")
        figure.colorbar(image, ax=list(panels), label=f"requests in {HERD_WINDOW_S:g} s")
    return figure
