"""Why two choices? Sweeps of the balancers' simulation, what they say in words, and pictures.

All balancers get equal requests, so they are compared pair by pair; intervals are over seeds.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from scipy.stats import t as student

from qubic_lab.cluster.balance import DEFAULT_BALANCER
from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.studies.balancing_workload import (
    HERD_WINDOW_S,
    RULES,
    BalancingSetting,
    measure,
    simulate,
    window_counts,
)
from qubic_lab.studies.style import DARK, INK, PALE, WIDTH_INCHES, Dot, counted, dots, log_axis, plot

CONFIDENCE = 0.95
LEAST_SEEDS = 2
HEADLINE = "slowdown_p99"
"""What verdicts go by: time ÷ time alone on the fastest node, of the 99th of 100 requests."""
COMPARED = ("time_mean_s", "time_p99_s", HEADLINE)
BY_TURNS = ("round-robin", "weighted-round-robin")
BY_TOKENS = ("two-choices", "two-choices-by-speed", "least-tokens")
DRAWN_BY_SPEED = "two-choices-by-speed"


@dataclass(frozen=True)
class MeanInterval:
    """A mean with Student's interval of 95 %."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class RatioInterval:
    """A geometric mean of paired ratios, with Student's interval of 95 % of the logarithms."""

    ratio: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.ratio:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class SweepCell:
    """A value of the factor and a balancer: samples and outcomes by measure, and ratios to two choices (`against`)."""

    value: Any
    balancer: str
    samples: Mapping[str, tuple[float, ...]]
    outcomes: Mapping[str, MeanInterval]
    against: Mapping[str, RatioInterval]

    @property
    def headline(self) -> MeanInterval:
        """The p99 of slowdown."""
        return self.outcomes[HEADLINE]

    @property
    def ratio(self) -> RatioInterval:
        """The p99 of slowdown as a multiple of that of two choices."""
        return self.against[HEADLINE]

    @property
    def verdict(self) -> str:
        """How the p99 of slowdown compares with that of two choices; empty for two choices themselves."""
        if self.balancer == DEFAULT_BALANCER:
            return ""
        return "better" if self.ratio.high < 1 else "worse" if self.ratio.low > 1 else "no difference shown"

    def __str__(self) -> str:
        return f"{self.balancer} {self.ratio}"


@dataclass(frozen=True)
class BalancingSweep:
    """Balancers run with several values of one factor, a field of the setting."""

    factor: str
    seeds: int
    setting: BalancingSetting
    cells: tuple[SweepCell, ...]

    @property
    def base(self) -> Any:
        """The factor's value in the setting."""
        return getattr(self.setting, self.factor)

    def find(self, value: Any, balancer: str) -> SweepCell:
        """Return the cell of a value and a balancer; an InputError if the sweep has none."""
        value = _field_value(value)
        for cell in self.cells:
            if (cell.value, cell.balancer) == (value, balancer):
                return cell
        raise InputError(f"{balancer} was not run with {FACTORS[self.factor].say(value)}: add both to the sweep")


@cache  # sweeps share settings
def outcomes(setting: BalancingSetting, balancer: str, seed: int) -> dict[str, float]:
    """Return the measures of a balancer on the requests of a seed: see `measure`."""
    return measure(simulate(setting, balancer, seed), setting)


def noticed(setting: BalancingSetting, balancer: str) -> BalancingSetting:
    """Return the setting without what a balancer does not look at, so that one run serves for several settings."""
    if balancer in BY_TURNS:
        return replace(setting, staleness_s=0.0, knows="limit")
    return setting if balancer in BY_TOKENS else replace(setting, knows="limit")


def sweep(
    setting: BalancingSetting,
    factor: str,
    values: Sequence[Any],
    balancers: Sequence[str],
    seeds: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> BalancingSweep:
    """Run balancers, two choices among them, with several values of one factor.

    Raises:
        InputError: an unknown factor or balancer, no two choices, a value out of its range, or fewer than 2 seeds.
    """
    check_choice("factor", factor, FACTORS)
    check_at_least("seeds", seeds, LEAST_SEEDS)
    for name in balancers:
        check_choice("balancer", name, RULES)
    check_choice("balancer", DEFAULT_BALANCER, balancers)
    changed = {value: replace(setting, **{factor: value}) for value in map(_field_value, values)}
    cells: list[SweepCell] = []
    for value, each in changed.items():
        found: dict[str, list[dict[str, float]]] = {}
        for name in balancers:
            if progress is not None:
                progress(f"{FACTORS[factor].say(value)}, {name}", len(cells) + len(found), len(values) * len(balancers))
            found[name] = [outcomes(noticed(each, name), name, seed) for seed in range(seeds)]
        cells += [_cell(value, name, runs, found[DEFAULT_BALANCER]) for name, runs in found.items()]
    return BalancingSweep(factor, seeds, setting, tuple(cells))


def _field_value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cell(
    value: Any, balancer: str, runs: Sequence[dict[str, float]], default: Sequence[dict[str, float]]
) -> SweepCell:
    samples = {name: tuple(run[name] for run in runs) for name in runs[0]}
    return SweepCell(
        value,
        balancer,
        samples,
        outcomes={name: mean_interval(values) for name, values in samples.items()},
        against={name: ratio_interval(samples[name], [run[name] for run in default]) for name in COMPARED},
    )


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Return the mean of at least 2 values with its interval."""
    mean = fmean(values)
    half_width = float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return MeanInterval(mean, mean - half_width, mean + half_width)


def ratio_interval(values: Sequence[float], base: Sequence[float]) -> RatioInterval:
    """Return the geometric mean of the ratios of paired values with its interval."""
    logs = mean_interval([math.log(value / other) for value, other in zip(values, base, strict=True)])
    return RatioInterval(math.exp(logs.mean), math.exp(logs.low), math.exp(logs.high))


@dataclass(frozen=True)
class Factor:
    """A field of `Setting` that is swept: how an axis names it, and how a sentence says a value of it."""

    axis: str
    say: Callable[[Any], str]


def _ratio(speeds: Sequence[int]) -> str:
    return ":".join(map(str, speeds))


def _speeds(speeds: Sequence[int]) -> str:
    return f"speeds {_ratio(speeds)}" if len(set(speeds)) > 1 else "equal speeds"


FACTORS = {
    "staleness_s": Factor("time between heartbeats (s)", lambda s: f"heartbeats every {s:g} s" if s else "fresh loads"),
    "load": Factor("load (tokens asked for ÷ possible)", lambda load: f"load {load:g}"),
    "coordinators": Factor("coordinators (number)", lambda number: counted(number, "coordinator")),
    "speeds": Factor("speeds of the nodes, in turn", _speeds),
    "slots": Factor("slots of a node (number)", lambda number: f"{counted(number, 'slot')} a node"),
    "knows": Factor("what is known of an answer's length", lambda name: f"the {name} known"),
    "length_tail": Factor("tail of answers' lengths (exponent)", lambda tail: f"tail {tail:g}"),
    "nodes": Factor("nodes (number)", lambda number: counted(number, "node")),
}
LOOKS = {
    "two-choices": ("-o", DARK),
    "two-choices-by-speed": ("-o", "white"),
    "least-tokens": ("--s", DARK),
    "least-connections": ("--s", "white"),
    "resource-aware": (":^", "white"),
    "weighted-round-robin": ("-.D", "white"),
    "round-robin": ("-.D", PALE),
}
"""Line with mark, and its filling."""
AXES = {"time_p99_s": "p99 of time (s)", HEADLINE: "p99 of slowdown"}
HERDS_SHOWN = ("least-tokens", "two-choices")


def cell_rows(sweep: BalancingSweep) -> list[dict[str, Any]]:
    """Return one row a value and balancer; `low` and `high` are 95 % intervals, `ratio` is to two choices."""
    return [
        {
            sweep.factor: _ratio(cell.value) if sweep.factor == "speeds" else cell.value,
            "balancer": cell.balancer,
            "slowdown_p99": cell.headline.mean,
            "low": cell.headline.low,
            "high": cell.headline.high,
            "ratio": cell.ratio.ratio,
            "ratio_low": cell.ratio.low,
            "ratio_high": cell.ratio.high,
            "verdict": cell.verdict,
            **{name: interval.mean for name, interval in cell.outcomes.items() if name != HEADLINE},
        }
        for cell in sweep.cells
    ]


def findings(sweeps: Sequence[BalancingSweep]) -> list[str]:
    """Say where two choices are the best, where they are not, and where no difference was shown.

    The first sweep has all balancers, and among its values the one that the others share.
    """
    by_factor = {each.factor: each for each in sweeps}
    return [
        *_base_sentences(sweeps[0]),
        _verdict_sentence(sweeps, "better", "These beat two-choices (p99 as a multiple of its p99)"),
        _verdict_sentence(sweeps, "no difference shown", "No difference from two-choices was shown"),
        *_by_speed_sentences(by_factor["speeds"]),
        _knows_sentence(by_factor["knows"]),
        _growth_sentence(by_factor["nodes"]),
    ]


def _base_sentences(sweep: BalancingSweep) -> list[str]:
    cells = [cell for cell in sweep.cells if cell.value == sweep.base]
    own = sweep.find(sweep.base, DEFAULT_BALANCER).headline
    others = sorted((cell for cell in cells if cell.balancer != DEFAULT_BALANCER), key=lambda cell: cell.ratio.ratio)
    herds = sorted(((cell.outcomes["herd_share"].mean, cell.balancer) for cell in cells), key=lambda herd: -herd[0])
    named = ("nodes", "speeds", "slots", "coordinators", "staleness_s", "load")
    where = ", ".join(FACTORS[factor].say(getattr(sweep.setting, factor)) for factor in named)
    return [
        f"With two-choices, the p99 of slowdown is {own.mean:.1f} ({own.low:.1f} to {own.high:.1f}, {sweep.seeds} "
        "seeds).",
        f"The simulation has {where}.",
        f"As multiples of its p99, the others have: {', '.join(map(str, others))}.",
        f"The busiest node gets this share of the requests of {HERD_WINDOW_S:g} s: "
        f"{', '.join(f'{balancer} {share:.0%}' for share, balancer in herds)}.",
    ]


def _verdict_sentence(sweeps: Sequence[BalancingSweep], word: str, begin: str) -> str:
    """Name the balancers of a verdict, by setting; drawing by speed has a sentence of its own."""
    found: dict[str, list[str]] = {}
    for sweep in sweeps:
        for cell in sweep.cells:
            is_named = cell.value == sweep.base and sweep is not sweeps[0]
            if cell.verdict == word and cell.balancer != DRAWN_BY_SPEED and not is_named:
                found.setdefault(FACTORS[sweep.factor].say(cell.value), []).append(str(cell))
    said = "; ".join(f"with {place} {' and '.join(names)}" for place, names in found.items())
    return f"{begin}: {said or 'none'}."


def _by_speed_sentences(sweep: BalancingSweep) -> list[str]:
    said = []
    for cell in sweep.cells:
        if cell.balancer == DRAWN_BY_SPEED:
            most = most_load(replace(sweep.setting, speeds=cell.value).node_speeds)
            bound = f"; drawn evenly, they cannot carry more than load {most:.2f}" if most < 1 else ""
            said.append(
                f"Drawn by speed, with {_speeds(cell.value)}, two choices have {cell.ratio} times the p99 and "
                f"{cell.against['time_mean_s']} times the mean time{bound}."
            )
    return said


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


def _knows_sentence(sweep: BalancingSweep) -> str:
    samples = {cell.value: cell.samples[HEADLINE] for cell in sweep.cells if cell.balancer == DEFAULT_BALANCER}
    limit = samples.pop("limit")
    said = [f"{name} {ratio_interval(values, limit)}" for name, values in samples.items()]
    return f"If two-choices knows more than an answer's limit, its p99 changes by this factor: {', '.join(said)}."


def _growth_sentence(sweep: BalancingSweep) -> str:
    few, many = (extreme(cell.value for cell in sweep.cells) for extreme in (min, max))
    said = [
        f"{balancer} {sweep.find(few, balancer).headline.mean:.1f} and {sweep.find(many, balancer).headline.mean:.1f}"
        for balancer in dict.fromkeys(cell.balancer for cell in sweep.cells)
    ]
    return f"The p99 of slowdown with {few:,} and with {counted(many, 'node')} is: {', '.join(said)}."


def curves(sweep: BalancingSweep) -> Figure:
    """Draw the 99th percentiles of time and of slowdown against the swept values, with 95 % intervals."""
    values = list(dict.fromkeys(_tick(cell.value) for cell in sweep.cells))
    balancers = list(dict.fromkeys(cell.balancer for cell in sweep.cells))
    with plot((2, 1), (WIDTH_INCHES, 5.0), grid="y", ncols=2, sharex=True) as (figure, panels):
        for axes, (name, label) in zip(panels, AXES.items(), strict=True):
            for number, balancer in enumerate(balancers):
                aside = 0.3 * (number / max(1, len(balancers) - 1) - 0.5)  # so that intervals do not hide each other
                _draw_curve(axes, sweep, balancer, name, aside)
            axes.set_ylabel(label)
        panels[0].set_ylim(bottom=0)
        log_axis(panels[1])
        panels[1].set_xticks(range(len(values)), values)
        panels[1].set_xlabel(FACTORS[sweep.factor].axis)
    return figure


def _draw_curve(axes: Axes, sweep: BalancingSweep, balancer: str, name: str, aside: float) -> None:
    intervals = [cell.outcomes[name] for cell in sweep.cells if cell.balancer == balancer]
    least = min(each.mean for each in intervals) / 2  # an interval that reaches 0 has no end on this axis
    found = [Dot(each.mean, max(each.low, least), each.high) for each in intervals]
    dots(axes, [place + aside for place in range(len(found))], found, *LOOKS[balancer], balancer)


def _tick(value: Any) -> str:
    if isinstance(value, tuple):
        return _ratio(value)
    return value if isinstance(value, str) else f"{value:g}"


def herds(setting: BalancingSetting, seed: int = 0) -> Figure:
    """Draw where the requests of each 5 s went, by the least tokens of all and by two choices."""
    counts = {name: window_counts(simulate(setting, name, seed), setting) for name in HERDS_SHOWN}
    order = sorted(range(setting.nodes), key=lambda number: -setting.node_speeds[number])
    most = max(int(each.max()) for each in counts.values())
    shades = LinearSegmentedColormap.from_list("requests", ["white", PALE, DARK, INK])
    with plot((len(counts), 1), (WIDTH_INCHES, 4.6), grid="none", sharex=True) as (figure, panels):
        for axes, (name, each) in zip(panels, counts.items(), strict=True):
            look: dict[str, Any] = {"vmin": 0, "vmax": most, "aspect": "auto", "interpolation": "none"}
            look["extent"] = (0.0, len(each) * HERD_WINDOW_S, setting.nodes + 0.5, 0.5)
            image = axes.imshow(each[:, order].T, shades, **look)
            axes.set_title(name, loc="left", fontsize=10)
            axes.set_ylabel("nodes, fastest on top")
        panels[-1].set_xlabel("time since counting began (s)")
        figure.colorbar(image, ax=list(panels), label=f"requests in {HERD_WINDOW_S:g} s")
    return figure
