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
from qubic_lab.studies.finding import Finding, answering, estimate, say
from qubic_lab.studies.style import DARK, INK, PALE, WIDTH_INCHES, Dot, dots, log_axis, plot

QUESTION = "loss"
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

    def finding(self) -> Finding:
        """Return it as a part of a sentence."""
        return estimate(self.ratio, self.low, self.high)


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

    def finding(self) -> Finding:
        """Return the balancer with its ratio as a part of a sentence."""
        return say("{balancer} {ratio:.2f}", balancer=self.balancer, ratio=self.ratio.finding())


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
    say: Callable[[Any], Finding]


def _ratio(speeds: Sequence[int]) -> str:
    return ":".join(map(str, speeds))


def _speeds(speeds: Sequence[int]) -> Finding:
    return say("speeds {ratio}", ratio=_ratio(speeds)) if len(set(speeds)) > 1 else say("equal speeds")


KNOWN = {"limit": "limit", "estimate": "estimate", "length": "length"}
"""What may be known of an answer's length."""

FACTORS = {
    "staleness_s": Factor(
        "time between heartbeats (s)",
        lambda every_s: say("heartbeats every {every:g} s", every=every_s) if every_s else say("fresh loads"),
    ),
    "load": Factor("load (tokens asked for ÷ possible)", lambda load: say("load {load:g}", load=load)),
    "coordinators": Factor("coordinators (number)", lambda number: say("{number:coordinator}", number=number)),
    "speeds": Factor("speeds of the nodes, in turn", _speeds),
    "slots": Factor("slots of a node (number)", lambda number: say("{number:slot} a node", number=number)),
    "knows": Factor("what is known of an answer's length", lambda name: say("the {name} known", name=say(KNOWN[name]))),
    "length_tail": Factor("tail of answers' lengths (exponent)", lambda tail: say("tail {tail:g}", tail=tail)),
    "nodes": Factor("nodes (number)", lambda number: say("{number:node}", number=number)),
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


def findings(sweeps: Sequence[BalancingSweep]) -> list[Finding]:
    """Say where two choices are the best, where they are not, and where no difference was shown.

    The first sweep has all balancers, and among its values the one that the others share.
    """
    by_factor = {each.factor: each for each in sweeps}
    found = [
        *_base_findings(sweeps[0]),
        say("These beat two-choices (p99 as a multiple of its p99): {cells}.", cells=_judged(sweeps, "better")),
        say("No difference from two-choices was shown: {cells}.", cells=_judged(sweeps, "no difference shown")),
        *_by_speed_findings(by_factor["speeds"]),
        _knows_finding(by_factor["knows"]),
        _growth_finding(by_factor["nodes"]),
    ]
    return answering(QUESTION, found)


def _base_findings(sweep: BalancingSweep) -> list[Finding]:
    cells = [cell for cell in sweep.cells if cell.value == sweep.base]
    own = sweep.find(sweep.base, DEFAULT_BALANCER).headline
    others = sorted((cell for cell in cells if cell.balancer != DEFAULT_BALANCER), key=lambda cell: cell.ratio.ratio)
    herds = sorted(((cell.outcomes["herd_share"].mean, cell.balancer) for cell in cells), key=lambda herd: -herd[0])
    named = ("nodes", "speeds", "slots", "coordinators", "staleness_s", "load")
    return [
        say(
            "With two-choices, the p99 of slowdown is {key:.1f} ({seeds:seed}).",
            key=own.mean,
            low=own.low,
            high=own.high,
            unit=say("times the time alone"),
            seeds=sweep.seeds,
        ),
        say(
            "The simulation has {where}.",
            where=[FACTORS[factor].say(getattr(sweep.setting, factor)) for factor in named],
        ),
        say("As multiples of its p99, the others have: {others}.", others=[cell.finding() for cell in others]),
        say(
            "The busiest node gets this share of the requests of {window:g} s: {herds}.",
            window=HERD_WINDOW_S,
            herds=[
                say("{balancer} {share:percent}", balancer=balancer, share=round(share, 2)) for share, balancer in herds
            ],
        ),
    ]


def _judged(sweeps: Sequence[BalancingSweep], word: str) -> list[Finding]:
    """Return the balancers of a verdict with their settings; drawing by speed has a finding of its own."""
    found = [
        say("{balancer} with {setting}", balancer=cell.finding(), setting=FACTORS[sweep.factor].say(cell.value))
        for sweep in sweeps
        for cell in sweep.cells
        if cell.verdict == word and cell.balancer != DRAWN_BY_SPEED
        if cell.value != sweep.base or sweep is sweeps[0]
    ]
    return found or [say("none")]


def _by_speed_findings(sweep: BalancingSweep) -> list[Finding]:
    said = []
    for cell in sweep.cells:
        if cell.balancer == DRAWN_BY_SPEED:
            values = {"speeds": _speeds(cell.value), "ratio": cell.ratio.finding()}
            values |= {"mean": cell.against["time_mean_s"].finding()}
            said.append(
                say(
                    "Drawn by speed, with {speeds}, two choices have {ratio:.2f} times the p99 and {mean:.2f} times "
                    "the mean time.",
                    **values,
                )
            )
            most = most_load(replace(sweep.setting, speeds=cell.value).node_speeds)
            if most < 1:
                text = "Drawn evenly, with {speeds}, two choices cannot carry more than load {most:.2f}."
                said.append(say(text, speeds=_speeds(cell.value), most=most))
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


def _knows_finding(sweep: BalancingSweep) -> Finding:
    samples = {cell.value: cell.samples[HEADLINE] for cell in sweep.cells if cell.balancer == DEFAULT_BALANCER}
    limit = samples.pop("limit")
    said = [
        say("{known} {ratio:.2f}", known=say(KNOWN[name]), ratio=ratio_interval(values, limit).finding())
        for name, values in samples.items()
    ]
    return say("If two-choices knows more than an answer's limit, its p99 changes by this factor: {said}.", said=said)


def _growth_finding(sweep: BalancingSweep) -> Finding:
    few, many = (extreme(cell.value for cell in sweep.cells) for extreme in (min, max))
    said = [
        say(
            "{balancer} {few:.1f} and {many:.1f}",
            balancer=balancer,
            few=sweep.find(few, balancer).headline.mean,
            many=sweep.find(many, balancer).headline.mean,
        )
        for balancer in dict.fromkeys(cell.balancer for cell in sweep.cells)
    ]
    return say("The p99 of slowdown with {few} and with {many:node} is: {said}.", few=few, many=many, said=said)


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
