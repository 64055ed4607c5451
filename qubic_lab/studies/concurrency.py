"""Many clients at one pipeline (`qubic_lab.bench.concurrency`): latencies and speeds in words and pictures.

What is read is what `ConcurrencyResult.to_dict` gives: plain values.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qubic_lab.studies.style import DARK, INK, LINES, PALE, STYLE, WIDTH_INCHES

Concurrency = Mapping[str, Any]
Level = Mapping[str, Any]

P95_TARGET_S = 10.0
CLIENTS_TARGET = 10
"""The acceptance of row 11.7."""
P99_REQUESTS = 100
"""With fewer requests the 99th percentile is the slowest one."""
_LISTS = ("tokens_per_s_samples", "compute_shares", "changed", "latencies_s")


def level_rows(result: Concurrency) -> list[dict[str, Any]]:
    """Return one row a level: latencies, waits and speeds, and the share of time that each rank computed."""
    return [
        {
            **{name: value for name, value in level.items() if name not in _LISTS},
            **{f"rank_{rank}_compute_share": share for rank, share in enumerate(level["compute_shares"])},
        }
        for level in result["levels"]
    ]


def findings(result: Concurrency) -> list[str]:
    """Say what many clients at once do to answers, to waiting and to the speed."""
    sentences = [_answers_sentence(result), _latency_sentence(result)]
    if len(result["levels"]) > 1:
        sentences.append(_speed_sentence(result))
    sentences.append(_ranks_sentence(result))
    if (few := min(level["requests"] for level in result["levels"])) < P99_REQUESTS:
        sentences.append(
            f"A level has {few} requests: their 99th percentile is the slowest of them, "
            f"and it takes at least {P99_REQUESTS} to say more."
        )
    return sentences


def _answers_sentence(result: Concurrency) -> str:
    levels = result["levels"]
    requests = sum(level["requests"] for level in levels)
    clients = _range([level["clients"] for level in levels])
    changed = [level for level in levels if not level["answers_unchanged"]]
    if not changed:
        return (
            f"All {requests:,} answers to {clients} at once are, token for token, those that the questions got alone."
        )
    worst = max(changed, key=lambda level: len(level["changed"]))
    return (
        f"Answers change when others ask at the same time: {len(worst['changed'])} of {result['requests']} questions "
        f"got other tokens from {worst['clients']} clients at once than alone."
    )


def _range(clients: Sequence[int]) -> str:
    first, last = min(clients), max(clients)
    return _clients(first) if first == last else f"{first} to {_clients(last)}"


def _clients(count: int) -> str:
    return "1 client" if count == 1 else f"{count} clients"


def target_level(result: Concurrency) -> Level:
    """Return the level that the target is about: the first with ten clients or more, or else the one with most."""
    levels: list[Level] = sorted(result["levels"], key=lambda level: int(level["clients"]))
    return next((level for level in levels if level["clients"] >= CLIENTS_TARGET), levels[-1])


def _latency_sentence(result: Concurrency) -> str:
    level = target_level(result)
    low_s, high_s = level["p95_low_s"], level["p95_high_s"]
    if low_s is not None and high_s is not None:
        interval = f"95 % interval {low_s:.2f} to {high_s:.2f} s"
    else:
        interval = "too few for a 95 % interval"
    verdict = "within" if level["p95_s"] < P95_TARGET_S else "over"
    return (
        f"With {_clients(level['clients'])} at once 95 % of the answers came whole within {level['p95_s']:.2f} s "
        f"({level['requests']} requests, {interval}), {verdict} the {P95_TARGET_S:g} s aimed at; "
        f"half of them within {level['p50_s']:.2f} s, and half had their first token after {level['ttft_p50_s']:.2f} s."
    )


def _speed_sentence(result: Concurrency) -> str:
    few, many = _ends(result)
    return (
        f"{_clients(few['clients'])} got {few['tokens_per_s']:.1f} tokens/s, "
        f"{_clients(many['clients'])} together {many['tokens_per_s']:.1f} "
        f"({many['tokens_per_s'] / few['tokens_per_s']:.1f} times as many), "
        f"and the median answer took {many['p50_s'] / few['p50_s']:.1f} times as long."
    )


def _ranks_sentence(result: Concurrency) -> str:
    ends = {level["clients"]: level for level in _ends(result)}
    said = [
        f"with {_clients(clients)} {' and '.join(f'{share:.0%}' for share in level['compute_shares'])}"
        for clients, level in ends.items()
    ]
    return f"Of a block's time the ranks computed {', '.join(said)}; the rest they waited for each other or for work."


def _ends(result: Concurrency) -> tuple[Level, Level]:
    levels = sorted(result["levels"], key=lambda level: int(level["clients"]))
    return levels[0], levels[-1]


def latencies(result: Concurrency) -> Figure:
    """Draw the quantiles of latency and of the wait for a first token against the number of clients."""
    levels = result["levels"]
    clients = [level["clients"] for level in levels]
    with _axes() as (figure, axes):
        for name, share, line, mark, fill in (
            ("p99_s", "99 %", ":", "^", "white"),
            ("p95_s", "95 %", "--", "s", PALE),
            ("p50_s", "50 %", "-", "o", DARK),
        ):
            values = [level[name] for level in levels]
            axes.plot(clients, values, line, marker=mark, markerfacecolor=fill, color=DARK, label=f"{share} of answers")
        for name in ("p50", "p95"):
            _draw_intervals(axes, levels, name)
        first = [level["ttft_p50_s"] for level in levels]
        axes.plot(clients, first, "-.", marker="x", color=INK, label="50 % of first tokens")
        _label(axes, clients, "time from the question on (s)")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def _draw_intervals(axes: Axes, levels: Sequence[Level], name: str) -> None:
    """Draw 95 % intervals as bars; an end that is not known is not drawn."""
    for level in levels:
        low, high = (level[f"{name}_{end}_s"] for end in ("low", "high"))
        value = level[f"{name}_s"]
        ends = [value if low is None else low, value if high is None else high]
        axes.plot([level["clients"]] * 2, ends, "-", color=INK, linewidth=1.0)


def throughput(result: Concurrency) -> Figure:
    """Draw the tokens per second of all clients together against their number, with each block as a dot."""
    levels = result["levels"]
    clients = [level["clients"] for level in levels]
    with _axes() as (figure, axes):
        for level in levels:
            samples = level["tokens_per_s_samples"]
            axes.plot([level["clients"]] * len(samples), samples, "o", color=PALE, markeredgecolor=DARK, markersize=5)
        axes.plot([], [], "o", color=PALE, markeredgecolor=DARK, markersize=5, label="a block")
        axes.plot(clients, [level["tokens_per_s"] for level in levels], "-", color=DARK, label="median of blocks")
        _label(axes, clients, "new tokens of all clients (tokens/s)")
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def latency_distributions(result: Concurrency) -> Figure:
    """Draw which share of the answers had come after some time, for the fewest clients, some, and the most."""
    few, many = _ends(result)
    shown = {level["clients"]: level for level in (few, target_level(result), many)}
    with _axes() as (figure, axes):
        for line, (clients, level) in zip(LINES, shown.items(), strict=False):
            times_s = [0.0, *level["latencies_s"]]
            shares = [index / (len(times_s) - 1) * 100 for index in range(len(times_s))]
            axes.plot(times_s, shares, line, drawstyle="steps-post", color=DARK, label=_clients(clients))
        axes.set_xlim(left=0)
        axes.set_ylim(0, 101)
        axes.set_xlabel("time from the question to the whole answer (s)")
        axes.set_ylabel("answers that had come (%)")
        figure.legend(loc="outside upper left", ncols=3)
    return figure


@contextmanager
def _axes() -> Iterator[tuple[Figure, Axes]]:
    with plt.rc_context(STYLE | {"axes.grid.axis": "both"}):
        yield plt.subplots(figsize=(WIDTH_INCHES, 3.2), layout="constrained")


def _label(axes: Axes, clients: Sequence[int], what: str) -> None:
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("clients at once (number)")
    axes.set_ylabel(what)
