"""How a model is spread: its parts, each way predicted beside measured, memory, and devices that are not here.

The measurements are those of `qubic_lab.bench.prediction`, `memory` and `link`, the plans those of
`qubic_lab.model.recommend`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from qubic_lab.bench.link import LinkResult
from qubic_lab.bench.memory import MemoryResult, RankMemory
from qubic_lab.bench.prediction_result import LayerCosts, PredictionCell, PredictionResult
from qubic_lab.model.candidates import Plan
from qubic_lab.model.cost import ModelCost
from qubic_lab.model.recommend import Advice, Baseline
from qubic_lab.studies.acceptance import (
    AcceptanceRow,
    Criterion,
    Text,
    WeekResults,
    joined,
    meaningless_note,
    too_noisy,
)
from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.style import DARK, INK, PALE, Dot, columns, dots, percent, rows

Row = dict[str, Any]

QUESTION = "speed"

GOOD_ERROR = 0.10
"""The acceptance of row 11.2: predicted against measured."""
LARGE_ERROR, WITHIN_LARGE = 0.20, 0.9
"""This share of the predictions must be nearer than the large error."""
SHARE_TOLERANCE = 0.10
SHOWN_ERROR = 40
"""The picture of errors ends here on both sides, in %: a machine's worst moments would dwarf the rest."""
QUANTITIES = {"tokens_per_s": "tokens/s, all lanes", "latency_ms": "ms a token, one lane alone"}
PREDICTED = {"tokens_per_s": "throughput", "latency_ms": "latency"}
ERRORS = {"throughput": "{error:percent} (throughput)", "latency": "{error:percent} (latency)"}
"""The quantities in the words of row 11.2."""
GOAL_NAMES = {"throughput": "throughput", "latency": "latency", "memory": "memory"}
TIMELINE = "timeline"
"""The name of the figure that shows a request's way through the ranks."""
ARCHITECTURE = Criterion(
    "11.1", "Architecture analysis", "parameters, bytes, FLOPs and measured time of the layers", "split_strategies"
)
PREDICTION = Criterion(
    "11.2",
    "Split strategies: predicted against measured",
    f"throughput and latency: median error of each < {percent(GOOD_ERROR)}, {percent(WITHIN_LARGE)} of the errors "
    f"< {percent(LARGE_ERROR)}",
    "split_strategies",
)
MEMORY = Criterion(
    "11.3",
    "A rank loads only its own layers",
    f"weights per rank ≈ its share (within {percent(SHARE_TOLERANCE)})",
    "split_strategies",
)
TRACE = Criterion(
    "11.5",
    "Trace of each request",
    "picture of compute, transfer, wait and queue of each rank",
    "a study with a timeline",
)


@dataclass(frozen=True)
class ArchitecturePart:
    """A part of a model (embedding, a layer, head) or the whole; `in_layers`: its bytes a step in those of a layer.

    The times of a layer and the head are measured for one request; None where they are not.
    """

    part: str
    count: int
    parameters: int
    weight_mb: float
    read_a_step_mb: float
    work_a_token_mflop: float
    in_layers: float
    decode_ms: float | None = None
    prefill_ms: float | None = None


@dataclass(frozen=True)
class Architecture:
    """The parts of a model in a dtype."""

    model: str
    dtype: str
    cost: ModelCost
    parts: tuple[ArchitecturePart, ...]


def architecture(model: str, dtype: str, cost: ModelCost, prediction: PredictionResult | None = None) -> Architecture:
    """Return the parts of a model and the whole; times come with a prediction's calibration on this machine."""
    times: dict[str, tuple[float, float | None]] = {}
    if prediction:
        measured = _smallest_costs(prediction)
        times = {"layer": (measured.layer_ms, measured.prefill_layer_ms), "head": (measured.head_ms, None)}
    parts = [
        ArchitecturePart(
            name,
            count,
            part.parameters,
            part.weight_bytes / 1e6,
            part.decode_bytes / 1e6,
            part.flops / 1e6,
            part.decode_bytes / cost.layer.decode_bytes,
            *times.get(name, (None, None)),
        )
        for name, count, part in (
            ("embedding", 1, cost.embedding),
            ("layer", cost.layers, cost.layer),
            ("head", 1, cost.head),
        )
    ]
    sums = ("parameters", "weight_mb", "read_a_step_mb", "work_a_token_mflop", "in_layers")
    whole = {name: sum(part.count * getattr(part, name) for part in parts) for name in sums}
    return Architecture(model, dtype, cost, (*parts, ArchitecturePart("whole model", 1, **whole)))


def cell_rows(prediction: PredictionResult) -> list[Row]:
    """Return one row a cell: what was predicted, what was measured, and the errors' spread over the repeats."""
    return [
        {
            **columns(cell, "ranks", "strategy", "layers", "batch"),
            "quantity": QUANTITIES[cell.quantity],
            **columns(cell, "predicted", "measured"),
            "measured_low": min(cell.measurements),
            "measured_high": max(cell.measurements),
            "error_pct": 100 * cell.error,
            "error_low_pct": 100 * cell.low,
            "error_high_pct": 100 * cell.high,
        }
        for cell in prediction.cells
    ]


def link_rows(link: LinkResult) -> list[Row]:
    """Return one row for the small message and one for the large one: medians and the 5 % ends."""
    return [
        {"bytes": size, "quantity": quantity, "median": median, "low": low, "high": high}
        for size, quantity, median, low, high in (
            (link.small_bytes, "latency (ms)", link.latency_ms, link.latency_low_ms, link.latency_high_ms),
            (link.large_bytes, "bandwidth (Gbps)", link.gbps, link.gbps_low, link.gbps_high),
        )
    ]


def memory_rows(memory: MemoryResult) -> list[Row]:
    """Return one row a rank: what it holds, what its layers take by the model's shape, and its peaks, in MB."""
    return [
        {
            "rank": rank.rank,
            "holds": rank.stage,
            "weights_mb": rank.weight_bytes / 1e6,
            "by_its_layers_mb": rank.share_bytes / 1e6,
            "peak_at_load_mb": rank.load_peak_rss_bytes / 1e6,
            "peak_mb": rank.peak_rss_bytes / 1e6,
        }
        for rank in memory.ranks
    ]


def plan_rows(advice: Advice) -> list[Row]:
    """Return one row a plan for devices that are not here, then one a baseline."""
    kinds: list[tuple[str, Plan | Baseline]] = [(f"strategy {plan.strategy}", plan) for plan in advice.plans]
    kinds += [(baseline.name, baseline) for baseline in advice.baselines]
    return [
        {
            "way": name,
            **columns(plan, "layers", "requests", "tokens_per_s", "latency_ms"),
            "largest_rank_gb": max(plan.memory_bytes) / 1e9,
            "recommended": "yes" if name.removeprefix("strategy ") == advice.recommendation else "",
        }
        for name, plan in kinds
    ]


def measures(prediction: PredictionResult) -> list[tuple[str, Sequence[float], str, str]]:
    """Return name, samples, unit and which is better of the speeds at the most requests, to be compared week by week.

    Few on purpose: the more measures a week compares, the larger a change must be to stand out.
    """
    cells = _throughputs(prediction)
    most = max(map(_requests, cells))
    return [
        (
            f"tokens_per_s_{'_'.join(map(str, cell.layers))}_layers_on_{cell.ranks}_ranks"
            f"{'_each' if cell.strategy == 'D' else ''}_batch_{cell.batch}",
            cell.measurements,
            "tokens/s",
            "higher",
        )
        for cell in cells
        if _requests(cell) == most
    ]


def findings(prediction: PredictionResult, memory: MemoryResult, advice: Advice) -> list[Finding]:
    """Say which way was fastest, how good the predictions were, and what is predicted for other devices."""
    held = [say("{mb:,.0f} MB on rank {rank}", mb=each.weight_bytes / 1e6, rank=each.rank) for each in memory.ranks]
    found = [
        *_best_way_findings(prediction),
        *_error_findings(prediction),
        say("Each rank holds only its own part of the weights: {held}.", held=held),
        _advice_finding(advice),
    ]
    return answering(QUESTION, found)


def _best_way_findings(prediction: PredictionResult) -> list[Finding]:
    cells = _throughputs(prediction)
    best = max(cells, key=lambda cell: cell.measured)
    requests = _requests(best)
    others = [cell for cell in cells if _requests(cell) == requests and cell is not best]
    text = "{model} runs fastest with {way}: {key:.1f} tokens/s for {requests:request}."
    if others:
        text = "{model} runs fastest with {way}, {times:.1f} times the next."
    said = [
        say(
            text,
            model=prediction.model,
            way=_way(best),
            key=best.measured,
            low=min(best.measurements),
            high=max(best.measurements),
            unit="tokens/s",
            rule=".1f",
            requests=requests,
            times=best.measured / max((cell.measured for cell in others), default=best.measured),
        )
    ]
    if others:
        ways = [say("{speed:.1f} with {way}", speed=cell.measured, way=_way(cell)) for cell in others]
        text = "With {requests:request} it gives {speed:.1f} tokens/s; the others: {ways}."
        said.append(say(text, requests=requests, speed=best.measured, ways=ways))
    return said


def _error_findings(prediction: PredictionResult) -> list[Finding]:
    cells = prediction.cells
    worst = max(cells, key=lambda cell: abs(cell.error))
    return [
        say(
            "Predictions from single-layer costs have a median error of {error:percent}; {within} of {cells} are "
            "within {limit:percent}.",
            error=prediction.median_error,
            within=sum(abs(cell.error) < GOOD_ERROR for cell in cells),
            cells=len(cells),
            limit=GOOD_ERROR,
        ),
        say(
            "The worst is {way}, batch {batch}, {quantity}: {error:signed percent} ({low:signed percent} to "
            "{high:signed percent} over {repeats:repeat}).",
            way=_way(worst),
            quantity=say(QUANTITIES[worst.quantity]),
            repeats=len(worst.measurements),
            **columns(worst, "batch", "error", "low", "high"),
        ),
    ]


def _advice_finding(advice: Advice) -> Finding:
    devices = [device.name for device in advice.setup.devices]
    if advice.recommendation is None:
        return say("For {devices}: {reason}", devices=devices, reason=advice.reason)
    ways: dict[str, Plan | Baseline] = {plan.strategy: plan for plan in advice.plans}
    ways |= {each.name: each for each in advice.baselines}
    best = ways[advice.recommendation]
    return say(
        "For {devices} and {goal}, {name} (layers: {layers}) is predicted to be best: {speed:.1f} tokens/s, "
        "{latency_ms:.1f} ms a token alone, {largest:.1f} GB on the largest rank.",
        devices=devices,
        goal=say(GOAL_NAMES[advice.goal]),
        name=advice.recommendation,
        layers="/".join(map(str, best.layers)),
        speed=best.tokens_per_s,
        latency_ms=best.latency_ms,
        largest=max(best.memory_bytes) / 1e9,
    )


def acceptance(week: WeekResults) -> list[AcceptanceRow]:
    """Judge the analysis of the architecture, the predictions, the ranks' memory and the trace."""
    return [_architecture_row(week), _prediction_row(week), _memory_row(week), _trace_row(week)]


def _architecture_row(week: WeekResults) -> AcceptanceRow:
    for run, found in week.read("architecture", Architecture).items():
        named, time = say("parameters, bytes, FLOPs"), say("measured time")
        timed = any(part.decode_ms is not None for part in found.parts)
        return ARCHITECTURE.complete(joined(named, time) if timed else named, [] if timed else [time], run)
    return ARCHITECTURE.not_measured()


def _prediction_row(week: WeekResults) -> AcceptanceRow:
    results = week.read("prediction", PredictionResult)
    cells = [(run, cell) for run, result in results.items() for cell in result.cells]
    if not cells:
        return PREDICTION.not_measured()
    run, worst = max(cells, key=lambda item: abs(item[1].error))
    medians, within = _error_medians([(cell, abs(cell.error)) for _, cell in cells])
    left_out = sum(cell.left_out for _, cell in cells)
    errors = [say(ERRORS[name], error=each) for name, each in medians.items()]
    measured = joined(
        say("median error {errors}", errors=errors),
        say(
            "{within} of {cells:prediction} within {limit:percent}", within=within, cells=len(cells), limit=LARGE_ERROR
        ),
        say("{pairs:pair} that others disturbed left out", pairs=left_out) if left_out else "",
        say(
            "the worst is {error:signed percent} (repeats {low:signed percent} to {high:signed percent}) for "
            "{strategy}, ranks: {ranks}, batch {batch}, {quantity}",
            quantity=say(PREDICTED[worst.quantity]),
            **columns(worst, "error", "low", "high", "strategy", "ranks", "batch"),
        ),
    )
    met = _is_good(medians, within, len(cells))
    if met and (missing := [say(name) for name in PREDICTED.values() if name not in medians]):
        return PREDICTION.complete(measured, missing, run)
    noisy = too_noisy(results[run].noise) or _spread_text([cell for _, cell in cells])
    note = meaningless_note(results[run].meaningless)
    return PREDICTION.row(measured, met, note, run, noisy=noisy)


def _error_medians(errors: Sequence[tuple[PredictionCell, float]]) -> tuple[dict[str, float], int]:
    """Return the median of the absolute errors of each quantity, and how many of all are below the large error."""
    found: dict[str, list[float]] = {}
    for cell, error in errors:
        found.setdefault(PREDICTED[cell.quantity], []).append(error)
    return {name: median(each) for name, each in found.items()}, sum(error < LARGE_ERROR for _, error in errors)


def _is_good(medians: Mapping[str, float], within: int, cells: int) -> bool:
    return max(medians.values()) < GOOD_ERROR and within >= WITHIN_LARGE * cells


def _spread_text(cells: Sequence[PredictionCell]) -> Text:
    """Say that repeats are further apart than the target is missed by; empty where they are not."""
    nearest = [(cell, max(0.0, cell.low, -cell.high)) for cell in cells]
    if not _is_good(*_error_medians(nearest), len(cells)):
        return ""
    widest = max(cell.high - cell.low for cell in cells)
    text = "machine too noisy: the repeats of a prediction are up to {apart:.1f} points apart, more than the miss"
    return say(text, apart=100 * widest)


def _memory_row(week: WeekResults) -> AcceptanceRow:
    def excess(rank: RankMemory) -> float:
        return abs(rank.weight_bytes / rank.share_bytes - 1)

    def mib(count: float) -> str:
        return f"{count / 2**20:,.0f}\N{NO-BREAK SPACE}MiB"

    found = week.read("memory", MemoryResult)
    results = {run: result for run, result in found.items() if len(result.ranks) > 1}  # one rank holds everything
    if not results:
        return MEMORY.not_measured(say("had two ranks or more") if found else "")
    worst = {run: max(map(excess, result.ranks)) for run, result in results.items()}
    run = max(worst, key=lambda run: worst[run])
    text = "rank {rank}: {weights} of weights for a share of {share}, {resident} resident at most"
    shares = joined(
        *(
            say(
                text,
                rank=rank.rank,
                weights=mib(rank.weight_bytes),
                share=mib(rank.share_bytes),
                resident=mib(rank.peak_rss_bytes),
            )
            for rank in results[run].ranks
        )
    )
    return MEMORY.row(
        shares, worst[run] <= SHARE_TOLERANCE, say("resident memory includes the libraries of each process"), run
    )


def _trace_row(week: WeekResults) -> AcceptanceRow:
    for run, captions in week.pictures.items():
        if TIMELINE in captions:
            return TRACE.row(say("the picture “{caption}”", caption=captions[TIMELINE]), "pass", "", run)
    return TRACE.not_measured()


def predicted_and_measured(prediction: PredictionResult) -> Figure:
    """Draw each cell's error with its spread over the repeats, and the bounds that are aimed at."""
    cells = prediction.cells
    with rows([f"{_way(cell)}, batch {cell.batch}" for cell in cells], inches_per_row=0.22) as (figure, axes):
        axes.axvspan(-100 * GOOD_ERROR, 100 * GOOD_ERROR, color=PALE, alpha=0.5, zorder=0)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        for quantity, look, fill in (("tokens_per_s", "o", DARK), ("latency_ms", "D", "white")):
            shown = {place: cell for place, cell in enumerate(cells) if cell.quantity == quantity}
            errors = [Dot(cell.error, cell.low, cell.high) for cell in shown.values()]
            dots(axes, list(shown), errors, look, fill, QUANTITIES[quantity], scale=100, across=True)
        axes.set_xlim(-SHOWN_ERROR, SHOWN_ERROR)
        axes.set_xlabel("predicted against measured (%)")
    return figure


def throughput(prediction: PredictionResult) -> Figure:
    """Draw the measured speed of each way, the fewest requests at once first."""
    cells = sorted(_throughputs(prediction), key=_requests)
    with rows([f"{_way(cell)}, {_requests(cell)} at once" for cell in cells]) as (figure, axes):
        for place, cell in enumerate(cells):
            fill = DARK if _requests(cell) == _requests(cells[-1]) else "white"
            speed = Dot(cell.measured, min(cell.measurements), max(cell.measurements))
            dots(axes, [place], [speed], fill=fill, across=True)
        axes.set_xlim(left=0)
        axes.set_xlabel("speed of all requests (tokens/s)")
    return figure


def _throughputs(prediction: PredictionResult) -> list[PredictionCell]:
    return [cell for cell in prediction.cells if cell.quantity == "tokens_per_s"]


def _requests(cell: PredictionCell) -> int:
    return int(cell.ranks * cell.batch)


def _kind(cell: PredictionCell) -> Finding:
    if cell.ranks == 1:
        return say("one whole model")
    if cell.strategy == "D":
        return say("{ranks} replicas (D)", ranks=cell.ranks)
    return say("{ranks} ranks, {strategy}", **columns(cell, "ranks", "strategy"))


def _way(cell: PredictionCell) -> Finding:
    if cell.ranks == 1 or cell.strategy == "D":
        return _kind(cell)
    layers = "/".join(map(str, cell.layers))
    return say("{ranks} ranks, {strategy} ({layers})", layers=layers, **columns(cell, "ranks", "strategy"))


def _smallest_costs(prediction: PredictionResult) -> LayerCosts:
    """Return the calibration with the most ranks, all lanes running, and the smallest batch."""
    ranks = max(costs.ranks for costs in prediction.costs)
    busy = [costs for costs in prediction.costs if costs.ranks == ranks and costs.lanes == ranks]
    return min(busy, key=lambda costs: costs.batch)
