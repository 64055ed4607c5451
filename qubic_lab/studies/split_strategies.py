"""How a model is spread: its parts, each way predicted beside measured, memory, and devices that are not here.

What is read are the plain values of `qubic_lab.bench.prediction`, `qubic_lab.bench.memory` and
`qubic_lab.model.recommend`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from qubic_lab.studies.style import DARK, INK, LINES, PALE, STYLE, WIDTH_INCHES, rows

Prediction = Mapping[str, Any]
Advice = Mapping[str, Any]
Row = dict[str, Any]

GOOD_ERROR = 0.10
"""The acceptance of row 11.2: predicted against measured."""
SHOWN_ERROR = 40
"""The picture of errors goes so far to both sides, in %: a machine's worst moments would dwarf the rest."""
QUANTITIES = {"tokens_per_s": "tokens/s, all lanes", "latency_ms": "ms a token, one lane alone"}
MARKS = {"tokens_per_s": "o", "latency_ms": "D"}


def architecture_rows(cost: Mapping[str, Any], prediction: Prediction | None = None) -> list[Row]:
    """Return one row a part of a model (embedding, a layer, head) and one for the whole.

    With a prediction's calibration, measured on this machine for one request, come the times of a layer and the head.
    """
    layers = cost["layers"]
    parts = {"embedding": (1, cost["embedding"]), "layer": (layers, cost["layer"]), "head": (1, cost["head"])}
    measured = _smallest_costs(prediction) if prediction else None
    found = [
        {
            "part": name,
            "count": count,
            "parameters": part["parameters"],
            "weight_mb": part["weight_bytes"] / 1e6,
            "read_a_step_mb": part["decode_bytes"] / 1e6,
            "work_a_token_mflop": part["flops"] / 1e6,
            "in_layers": part["decode_bytes"] / cost["layer"]["decode_bytes"],
        }
        for name, (count, part) in parts.items()
    ]
    if measured:
        times = {"layer": (measured["layer_ms"], measured["prefill_layer_ms"]), "head": (measured["head_ms"], None)}
        for row in found:
            row["decode_ms"], row["prefill_ms"] = times.get(row["part"], (None, None))
    sums = ("parameters", "weight_mb", "read_a_step_mb", "work_a_token_mflop", "in_layers")
    whole = {name: sum(row["count"] * row[name] for row in found) for name in sums}
    return [*found, {"part": "whole model", "count": 1, **whole}]


def cell_rows(prediction: Prediction) -> list[Row]:
    """Return one row a cell: what was predicted, what was measured, and the errors' spread over the repeats."""
    return [
        {
            "ranks": cell["ranks"],
            "strategy": cell["strategy"],
            "layers": cell["layers"],
            "batch": cell["batch"],
            "quantity": QUANTITIES[cell["quantity"]],
            "predicted": cell["predicted"],
            "measured": cell["measured"],
            "measured_low": min(cell["measurements"]),
            "measured_high": max(cell["measurements"]),
            "error_pct": 100 * cell["error"],
            "error_low_pct": 100 * cell["low"],
            "error_high_pct": 100 * cell["high"],
        }
        for cell in prediction["cells"]
    ]


def link_rows(link: Mapping[str, Any]) -> list[Row]:
    """Return one row for the small message and one for the large one: medians and the 5 % ends."""
    return [
        {
            "bytes": link["small_bytes"],
            "quantity": "latency (ms)",
            "median": link["latency_ms"],
            "low": link["latency_low_ms"],
            "high": link["latency_high_ms"],
        },
        {
            "bytes": link["large_bytes"],
            "quantity": "bandwidth (Gbps)",
            "median": link["gbps"],
            "low": link["gbps_low"],
            "high": link["gbps_high"],
        },
    ]


def memory_rows(memory: Mapping[str, Any]) -> list[Row]:
    """Return one row a rank: what it holds, what its layers take by the model's shape, and its peaks, in MB."""
    return [
        {
            "rank": rank["rank"],
            "holds": rank["stage"],
            "weights_mb": rank["weight_bytes"] / 1e6,
            "by_its_layers_mb": rank["share_bytes"] / 1e6,
            "peak_at_load_mb": rank["load_peak_rss_bytes"] / 1e6,
            "peak_mb": rank["peak_rss_bytes"] / 1e6,
        }
        for rank in memory["ranks"]
    ]


def plan_rows(advice: Advice) -> list[Row]:
    """Return one row a plan for devices that are not here, then one a baseline."""
    kinds = [(f"strategy {plan['strategy']}", plan) for plan in advice["plans"]]
    kinds += [(baseline["name"], baseline) for baseline in advice["baselines"]]
    return [
        {
            "way": name,
            "layers": plan["layers"],
            "requests": plan["requests"],
            "tokens_per_s": plan["tokens_per_s"],
            "latency_ms": plan["latency_ms"],
            "largest_rank_gb": max(plan["memory_bytes"]) / 1e9,
            "recommended": "yes" if name == f"strategy {advice['recommendation']}" else "",
        }
        for name, plan in kinds
    ]


def measures(prediction: Prediction) -> list[tuple[str, Sequence[float], str, str]]:
    """Return name, samples, unit and which is better of the speeds at the most requests, to be compared week by week.

    Few on purpose: the more measures a week compares, the larger a change must be to stand out.
    """
    cells = _throughputs(prediction)
    most = max(map(_requests, cells))
    return [
        (
            f"tokens_per_s_{'_'.join(map(str, cell['layers']))}_layers_on_{cell['ranks']}_ranks"
            f"{'_each' if cell['strategy'] == 'D' else ''}_batch_{cell['batch']}",
            cell["measurements"],
            "tokens/s",
            "higher",
        )
        for cell in cells
        if _requests(cell) == most
    ]


def findings(prediction: Prediction, memory: Mapping[str, Any], advice: Advice) -> list[str]:
    """Say what was found, the answer to the week's first question first."""
    return [
        _best_way_sentence(prediction),
        _error_sentence(prediction),
        _memory_sentence(memory),
        f"Predicted for {', '.join(advice['devices'])} and {advice['goal']}: {advice['reason']}",
    ]


def _best_way_sentence(prediction: Prediction) -> str:
    """Say which way gave the most tokens a second, and how the best split compares at as many requests."""
    cells = _throughputs(prediction)
    best = max(cells, key=lambda cell: cell["measured"])
    requests = _requests(best)
    rivals = [cell for cell in cells if _requests(cell) == requests and cell is not best]
    text = (
        f"Here {prediction['model']} gave the most with {_way(best)}: {best['measured']:.1f} tokens/s "
        f"for {requests} requests at once"
    )
    if not rivals:
        return f"{text}."
    others = ", ".join(f"{_way(cell)} {cell['measured']:.1f}" for cell in rivals)
    return f"{text}; for as many requests {others}."


def _error_sentence(prediction: Prediction) -> str:
    cells = prediction["cells"]
    within = sum(abs(cell["error"]) < GOOD_ERROR for cell in cells)
    worst = max(cells, key=lambda cell: abs(cell["error"]))
    return (
        f"Predictions from the costs of single layers missed by {prediction['median_error']:.1%} in the median of "
        f"{len(cells)} cells, {within} of them by less than {GOOD_ERROR:.0%}; the worst was {_way(worst)}, batch "
        f"{worst['batch']}, {QUANTITIES[worst['quantity']]}: {worst['error']:+.0%} "
        f"({worst['low']:+.0%} to {worst['high']:+.0%} over {len(worst['measurements'])} repeats)."
    )


def _memory_sentence(memory: Mapping[str, Any]) -> str:
    ranks = [f"{rank['weight_bytes'] / 1e6:,.0f} MB on rank {rank['rank']}" for rank in memory["ranks"]]
    return f"Each rank holds its own part of the weights only: {', '.join(ranks)}."


def predicted_and_measured(prediction: Prediction) -> Figure:
    """Draw each cell's error with its spread over the repeats, and the bounds that are aimed at."""
    cells = prediction["cells"]
    labels = [f"{_way(cell)}, batch {cell['batch']}" for cell in cells]
    with rows(labels, inches_per_row=0.22) as (figure, axes):
        axes.axvspan(-100 * GOOD_ERROR, 100 * GOOD_ERROR, color=PALE, alpha=0.5, zorder=0)
        axes.axvline(0.0, color=INK, linewidth=0.8)
        for quantity, mark in MARKS.items():
            shown = [(place, cell) for place, cell in enumerate(cells) if cell["quantity"] == quantity]
            axes.errorbar(
                [100 * cell["error"] for _, cell in shown],
                [place for place, _ in shown],
                xerr=[
                    [100 * (cell["error"] - cell["low"]) for _, cell in shown],
                    [100 * (cell["high"] - cell["error"]) for _, cell in shown],
                ],
                fmt=mark,
                color=DARK,
                markerfacecolor=DARK if mark == "o" else "white",
                markersize=5,
                linewidth=1,
                label=QUANTITIES[quantity],
            )
        axes.set_xlim(-SHOWN_ERROR, SHOWN_ERROR)
        axes.set_xlabel("predicted against measured (%)")
    return figure


def throughput(prediction: Prediction) -> Figure:
    """Draw measured tokens/s against the requests at once, one line a way."""
    lines: dict[str, list[tuple[int, Mapping[str, Any]]]] = {}
    for cell in _throughputs(prediction):
        lines.setdefault(_kind(cell), []).append((_requests(cell), cell))
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        figure, axes = plt.subplots(figsize=(WIDTH_INCHES, 3.4), layout="constrained")
        for number, (label, points) in enumerate(lines.items()):
            points.sort(key=lambda point: point[0])
            middle = [cell["measured"] for _, cell in points]
            axes.errorbar(
                [requests for requests, _ in points],
                middle,
                yerr=[
                    [cell["measured"] - min(cell["measurements"]) for _, cell in points],
                    [max(cell["measurements"]) - cell["measured"] for _, cell in points],
                ],
                linestyle=LINES[number % len(LINES)],
                marker="osD^v"[number % 5],
                markerfacecolor="white" if number % 2 else DARK,
                color=DARK,
                capsize=2,
                label=label,
            )
        axes.set_xlabel("requests at once")
        axes.set_ylabel("speed of all requests (tokens/s)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def _throughputs(prediction: Prediction) -> list[Mapping[str, Any]]:
    return [cell for cell in prediction["cells"] if cell["quantity"] == "tokens_per_s"]


def _requests(cell: Mapping[str, Any]) -> int:
    return int(cell["ranks"] * cell["batch"])


def _kind(cell: Mapping[str, Any]) -> str:
    if cell["ranks"] == 1:
        return "one whole model"
    return f"{cell['ranks']} replicas (D)" if cell["strategy"] == "D" else f"{cell['ranks']} ranks, {cell['strategy']}"


def _way(cell: Mapping[str, Any]) -> str:
    if cell["ranks"] == 1 or cell["strategy"] == "D":
        return _kind(cell)
    return f"{_kind(cell)} ({'/'.join(map(str, cell['layers']))})"


def _smallest_costs(prediction: Prediction) -> Mapping[str, Any]:
    """Return the calibration of the most ranks, of which all lanes run, at the smallest batch."""
    ranks = max(costs["ranks"] for costs in prediction["costs"])
    busy = [costs for costs in prediction["costs"] if costs["ranks"] == ranks and costs["lanes"] == ranks]
    found: Mapping[str, Any] = min(busy, key=lambda costs: costs["batch"])
    return found
