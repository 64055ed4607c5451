"""What the parts of a decode step took, read from the trace of a pipeline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import mean, median
from typing import TYPE_CHECKING

from qubic_lab.errors import InputError
from qubic_lab.model.cost import PartTimes

if TYPE_CHECKING:
    import pandas as pd

FEWEST_STEPS = 4
"""Steps of each rank that a mean of costs needs."""


@dataclass(frozen=True)
class StepTimes:
    """Times in seconds of one step of a lane: the parts on each rank, and a message between two ranks.

    A rank's `head_s` is 0 unless it has the head. The overhead is the rank's time in a step without layers, head and
    waiting; it includes the embedding. `hop_s` can be measured only while one lane runs alone and is 0 otherwise,
    because other lanes hide it. `wait_s` is what they do not hide, the wait of the rank that waits least in a step; 0
    while one lane runs alone. `prefill_layer_s` is the time of one layer for one prompt.
    """

    ranks: tuple[PartTimes, ...]
    hop_s: float
    prefill_layer_s: float
    wait_s: float = 0.0


def step_times(spans: "pd.DataFrame", layers: Sequence[int]) -> StepTimes:
    """Return the mean times of the steps in which every lane was decoding and no prompt was computed.

    The trace (`trace.read_trace`) is of answers of equal length, one in each slot; `layers` are those of each rank.

    Raises:
        InputError: the trace has too few such steps.
    """
    begin_ms, end_ms = _steady(spans)
    steady = spans[spans["start_ms"].between(begin_ms, end_ms)]
    found = [_rank_parts(steady[steady["rank"] == rank], count) for rank, count in enumerate(layers)]
    parts, waits_s, periods_s = zip(*found, strict=True)
    busy_s = sum(part.layer_s * n + part.head_s + part.overhead_s for part, n in zip(parts, layers, strict=True))
    alone = len(layers) > 1 and steady["lane"].nunique() == 1
    prefill = spans[(spans["phase"] == "prefill") & (spans["kind"] == "compute")]
    prefill_ms = (prefill["end_ms"] - prefill["start_ms"]).groupby(prefill["rank"]).median().sum()
    return StepTimes(
        ranks=parts,
        hop_s=max(0.0, periods_s[0] - busy_s) / len(layers) if alone else 0.0,
        prefill_layer_s=float(prefill_ms) / 1e3 / sum(layers),
        wait_s=0.0 if alone else min(waits_s),
    )


def periods_by_rows(spans: "pd.DataFrame") -> list[tuple[int, float]]:
    """Return the rows of each decode step of a request alone, and the ms from its start to that of the next one."""
    steps = spans[(spans["rank"] == 0) & (spans["kind"] == "compute") & (spans["phase"] == "decode")]
    starts = zip(steps["tokens"], steps["start_ms"], strict=True)
    return [(int(rows), float(next_ms - start_ms)) for (rows, start_ms), (_, next_ms) in pairwise(starts)]


def scaled(times: StepTimes, probes: Sequence[StepTimes]) -> StepTimes:
    """Scale the costs of layers and head to the memory speed during the probes."""
    factor = slowdown(times, probes)
    ranks = [replace(part, layer_s=part.layer_s * factor, head_s=part.head_s * factor) for part in times.ranks]
    return replace(times, ranks=tuple(ranks))


def slowdown(times: StepTimes, probes: Sequence[StepTimes]) -> float:
    """Return how many times as long a layer took during the probes."""
    reference = sum(part.layer_s for part in times.ranks)
    return mean(sum(part.layer_s for part in probe.ranks) for probe in probes) / reference


def median_times(found: Sequence[StepTimes]) -> StepTimes:
    """Return the medians of several calibrations, part by part."""
    ranks = [
        PartTimes(
            embedding_s=0.0,
            layer_s=median(part.layer_s for part in same_rank),
            head_s=median(part.head_s for part in same_rank),
            overhead_s=median(part.overhead_s for part in same_rank),
        )
        for same_rank in zip(*(times.ranks for times in found), strict=True)
    ]
    return StepTimes(
        ranks=tuple(ranks),
        hop_s=median(times.hop_s for times in found),
        prefill_layer_s=median(times.prefill_layer_s for times in found),
        wait_s=median(times.wait_s for times in found),
    )


def _steady(spans: "pd.DataFrame") -> tuple[float, float]:
    """Return start and end in ms of the time in which every lane decodes and no prompt is computed."""
    compute = spans[spans["kind"] == "compute"]
    steps = compute[compute["phase"] == "decode"].groupby("lane")
    prompts_end_ms = compute.loc[compute["phase"] == "prefill", "end_ms"].max()
    return max(prompts_end_ms, steps["start_ms"].min().max()), steps["end_ms"].max().min()


def _rank_parts(spans: "pd.DataFrame", layers: int) -> tuple[PartTimes, float, float]:
    """Return the parts of a rank's step, its wait for the previous rank, and the time from step to step, in seconds."""
    starts_ms = spans.loc[spans["kind"] == "compute", "start_ms"]
    steps = len(starts_ms) - 1
    if steps < FEWEST_STEPS:
        raise InputError(f"the trace has {max(0, steps)} steps of all lanes, of {FEWEST_STEPS}: ask for more tokens")
    window = spans[spans["start_ms"].between(starts_ms.min(), starts_ms.max(), inclusive="left")]
    sums_ms = (window["end_ms"] - window["start_ms"]).groupby(window["kind"]).sum()
    spent_s = {kind: float(ms) / 1e3 / steps for kind, ms in sums_ms.items()}
    compute_s, sample_s, wait_s = (spent_s.get(kind, 0.0) for kind in ("compute", "sample", "receive"))
    period_s = float(starts_ms.max() - starts_ms.min()) / 1e3 / steps
    overhead_s = max(0.0, period_s - compute_s - sample_s - wait_s)
    return PartTimes(0.0, compute_s / layers, sample_s, overhead_s), wait_s, period_s
