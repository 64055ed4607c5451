"""Costs read from a trace, and what is predicted from them."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from models import tiny_model

from qubic_lab.bench.attained import attained
from qubic_lab.bench.engine import SpeedGrid
from qubic_lab.bench.prediction import (
    Probe,
    Way,
    _measure,
    bench_prediction,
    by_rows,
    calibrating_layers,
    find_ways,
    predict,
)
from qubic_lab.bench.step_times import StepTimes, median_times, periods_by_rows, scaled, step_times
from qubic_lab.errors import InputError
from qubic_lab.model.config import parse_config
from qubic_lab.model.cost import PartTimes, model_cost
from qubic_lab.model.random_model import read_shape
from qubic_lab.provenance import usable_cores

LAYER_MS, HEAD_MS, OVERHEAD_MS, HOP_MS = 2.0, 5.0, 1.0, 0.5
LAYERS = (3, 2)


def spans_of(rounds: int, lanes: int, receive_ms: float = 0.0) -> pd.DataFrame:
    """A trace of two ranks with known times; every step of rank 0 is followed by rank 1's, lane after lane.

    A rank takes `receive_ms` to receive what has already come.
    """
    rows = [(rank, "compute", "prefill", 0, 0.0, 30.0) for rank in (0, 1)]
    free_ms = [100.0, 100.0]
    ready_ms = [100.0] * lanes
    for _ in range(rounds):
        for lane in range(lanes):
            for rank, layers in enumerate(LAYERS):
                arrives_ms = max(ready_ms[lane], free_ms[rank] + receive_ms)
                if arrives_ms > free_ms[rank]:
                    rows.append((rank, "receive", "decode", lane, free_ms[rank], arrives_ms))
                start_ms = max(arrives_ms, free_ms[rank])
                end_ms = start_ms + layers * LAYER_MS
                rows.append((rank, "compute", "decode", lane, start_ms, end_ms))
                if rank == 1:
                    rows.append((rank, "sample", "decode", lane, end_ms, end_ms + HEAD_MS))
                    end_ms += HEAD_MS
                free_ms[rank] = end_ms + OVERHEAD_MS
                ready_ms[lane] = free_ms[rank] + HOP_MS
    return pd.DataFrame(rows, columns=["rank", "kind", "phase", "lane", "start_ms", "end_ms"])


@pytest.mark.parametrize(("lanes", "hop_ms"), [(1, HOP_MS), (2, 0.0)])
def test_a_trace_tells_what_each_part_takes(lanes: int, hop_ms: float) -> None:
    times = step_times(spans_of(12, lanes), LAYERS)
    first, last = times.ranks
    assert first.layer_s == pytest.approx(LAYER_MS / 1e3) == last.layer_s
    assert (first.head_s, last.head_s) == pytest.approx((0.0, HEAD_MS / 1e3))
    assert (first.overhead_s, last.overhead_s) == pytest.approx((OVERHEAD_MS / 1e3,) * 2)
    assert times.hop_s == pytest.approx(hop_ms / 1e3, abs=1e-9)
    assert times.prefill_layer_s == pytest.approx(2 * 30e-3 / sum(LAYERS))


@pytest.mark.parametrize(("lanes", "receive_ms"), [(1, 0.0), (2, 0.0), (2, 1.5)])
def test_what_is_predicted_for_the_traced_split_is_what_it_took(lanes: int, receive_ms: float) -> None:
    spans = spans_of(40, lanes, receive_ms)
    steps = spans[(spans["kind"] == "compute") & (spans["phase"] == "decode") & (spans["rank"] == 0)]
    period_ms = (steps["start_ms"].max() - steps["start_ms"].min()) / (len(steps) - 1)
    found = predict(Way("X", LAYERS), step_times(spans, LAYERS), ranks=2, batch=4, lanes=lanes)
    assert found == pytest.approx(4 / period_ms * 1e3 if lanes == 2 else period_ms, rel=0.01)


TIMES = StepTimes((PartTimes(0.0, 2e-3, 0.0, 1e-3), PartTimes(0.0, 4e-3, 5e-3, 2e-3)), 0.5e-3, 1e-2)


def test_replicas_are_whole_models_side_by_side() -> None:
    expected = 3 / (10 * 2e-3 + 5e-3 + 1e-3) + 3 / (10 * 4e-3 + 5e-3 + 1e-3)
    assert predict(Way("D", (10,)), TIMES, ranks=2, batch=3, lanes=2) == pytest.approx(expected)


def test_a_probe_scales_what_reads_memory() -> None:
    slow = StepTimes(tuple(PartTimes(0.0, 3 * part.layer_s, 9.9, 9.9) for part in TIMES.ranks), 9.9, 9.9)
    found = scaled(TIMES, [TIMES, slow])  # the layers took once and three times as long: twice in the mean
    assert [part.layer_s for part in found.ranks] == pytest.approx([4e-3, 8e-3])
    assert found.ranks[1].head_s == pytest.approx(10e-3)
    assert [part.overhead_s for part in found.ranks] == [1e-3, 2e-3]
    assert found.hop_s == TIMES.hop_s


def test_the_median_of_calibrations_is_taken_part_by_part() -> None:
    odd = StepTimes(tuple(PartTimes(0.0, 1.0, 0.0, 0.0) for _ in TIMES.ranks), 0.0, 0.0)
    assert median_times([TIMES, odd, TIMES]) == TIMES


class FakeBench:
    """One rank that always takes as long as its probes say; others disturb the probes of these numbers."""

    ranks, replicas, weights = 1, False, ""

    def __init__(self, disturbed: Callable[[int], bool]) -> None:
        self.probes = 0
        self._disturbed = disturbed

    def costs(self, lanes: int, batch: int) -> StepTimes:
        return StepTimes(TIMES.ranks[:1], 0.0, 0.0)

    def probe(self, lanes: int, batch: int) -> Probe:
        self.probes += 1
        slow = self._disturbed(self.probes - 1)
        return Probe(self.costs(lanes, batch), others=0.5 if slow else 0.01)

    def measure(self, way: Way, batch: int, lanes: int) -> float:
        speed = predict(way, self.costs(lanes, batch), 1, batch, lanes)
        return speed / 3 if self._disturbed(self.probes) else speed


@pytest.mark.parametrize(
    ("disturbed", "pairs", "left_out"),
    [
        (lambda number: False, 6, 0),
        (lambda number: number in (2, 3), 6, 1),  # a pair has two probes
        (lambda number: number < 8, 8, 4),  # two more, until four count
        (lambda number: True, 6, 0),  # none counts, so all do, and more would be no better
        (lambda number: number % 4 < 2, 8, 4),
    ],
)
def test_pairs_that_others_disturbed_do_not_count_and_are_made_up_for(
    disturbed: Callable[[int], bool], pairs: int, left_out: int, tiny: Path
) -> None:
    grid = SpeedGrid.of(str(tiny), [1], [2], 16, 12, repeat=6)
    bench = FakeBench(disturbed)
    [cell] = _measure(grid, bench, lambda what, share: None)  # type: ignore[arg-type]
    assert (bench.probes, cell.left_out, len(cell.measurements)) == (2 * pairs, left_out, pairs - left_out)
    assert cell.error == pytest.approx(2.0 if disturbed(0) and not left_out else 0.0)


def test_equal_layers_are_one_way_and_replicas_come_last() -> None:
    given = {"A": (15, 15), "B": (15, 15), "C": (17, 13)}
    assert find_ways(30, given, replicas=True) == (Way("A = B", (15, 15)), Way("C", (17, 13)), Way("D", (30,)))
    assert find_ways(30, {"A": (30,), "B": (30,), "C": (30,)}, replicas=False) == (Way("A = B = C", (30,)),)


@pytest.mark.parametrize(("layers", "ranks", "split"), [(28, 2, (15, 13)), (28, 3, (11, 9, 8)), (30, 1, (30,))])
def test_calibration_has_a_split_of_its_own(layers: int, ranks: int, split: tuple[int, ...]) -> None:
    assert calibrating_layers(layers, ranks) == split


def test_short_traces_few_layers_and_ranks_that_share_a_core_are_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="ask for more tokens"):
        step_times(spans_of(2, 2), LAYERS)
    with pytest.raises(InputError, match="2 layers"):
        calibrating_layers(2, 2)
    with pytest.raises(InputError, match=f"there are {usable_cores()} cores"):
        bench_prediction(str(tiny), ranks=(1, usable_cores() + 1))


def test_figures_of_a_cpu_are_found_again_from_the_times_of_its_layers() -> None:
    layer = model_cost(parse_config(read_shape("deepseek")), "bf16", packed=True).layer
    took_s = {n: layer.step_bytes(n) / 40e9 + layer.flops * n / 0.2e12 for n in (1, 4, 8)}
    found = attained(took_s, layer, "", 1)
    assert found and (found.gb_per_s, found.gflops) == pytest.approx((40, 200)) and found.error < 1e-9
    free = attained({n: layer.step_bytes(n) / 40e9 for n in (1, 4, 8)}, layer, "", 1)
    assert free and free.gb_per_s == pytest.approx(40, rel=0.01), "rows that cost nothing"
    assert attained({1: 1.0, 4: 2.0}, layer, "", 1) is None, "any two are met"


def test_a_trace_tells_what_steps_take_by_their_rows() -> None:
    spans = spans_of(3, lanes=1).assign(tokens=1)
    steps = (spans["rank"] == 0) & (spans["phase"] == "decode") & (spans["kind"] == "compute")
    spans.loc[steps, "tokens"] = [1, 4, 9]
    one = sum(LAYERS) * LAYER_MS + HEAD_MS + 2 * (OVERHEAD_MS + HOP_MS)
    assert periods_by_rows(spans) == [(1, pytest.approx(one)), (4, pytest.approx(one))], "the last one has no next"


def test_rows_between_measured_ones_are_on_a_line_and_more_never_take_less() -> None:
    step_ms = by_rows({1: 10.0, 4: 13.0, 8: 24.0})
    assert [step_ms(rows) for rows in (1, 2, 4, 6, 8, 9)] == pytest.approx([10, 11, 13, 18.5, 24, 26])
    step_ms = by_rows({1: 5.0, 7: 11.0, 8: 9.0})
    assert [step_ms(rows) for rows in (7, 8, 15)] == pytest.approx([11, 11, 17])
    assert by_rows({1: 10.0})(5) == 10.0


@pytest.mark.dist
@pytest.mark.slow
def test_small_weights_drafts_and_memory_are_predicted_too(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model", max_position_embeddings=1024)
    result = bench_prediction(
        str(model), (1,), (1, 4), new_tokens=14, repeat=1, weights=("none", "int8"), strategies=("C",), drafts=True
    )
    cells = {(cell.weights, cell.batch, cell.answer) for cell in result.cells}
    assert cells == {(w, b, a) for w in ("", "int8") for b, a in ((1, ""), (4, ""), (1, "quoting"), (1, "free"))}
    assert [(each.weights, each.requests) for each in result.memory] == [("", 4), ("int8", 4)]
    assert result.median_memory_error is not None and result.median_memory_error < 0.5
    assert "median error of memory" in [*result.report()][-1]


@pytest.mark.dist
@pytest.mark.slow
def test_every_cell_is_measured_and_predicted(tiny: Path) -> None:
    result = bench_prediction(str(tiny), ranks=(1, 2), batches=(1, 2), new_tokens=14, repeat=2)
    cells = {(cell.quantity, cell.ranks, cell.batch, cell.strategy) for cell in result.cells}
    for batch in (1, 2):
        assert ("tokens_per_s", 1, batch, "A = B = C") in cells
        assert ("tokens_per_s", 2, batch, "D") in cells
        quantities = {q for q, ranks, b, s in cells if (ranks, b) == (2, batch) and "B" in s}
        assert quantities == {"tokens_per_s", "latency_ms"}
    assert ("tokens_per_s", 1, 4, "A = B = C") in cells  # as many requests as two ranks have at batch 2
    assert all(len(cell.measurements) == 2 and cell.predicted > 0 for cell in result.cells)
