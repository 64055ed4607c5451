"""Links of a test bed measured as `net check` does, and the speed of a pipeline over them beside the planner's.

Costs of layers come from a pipeline with another split on this machine, over loopback; the planner adds the links.
`python -m qubic_lab.testbed.measure`, on a host, measures a link (`link HOST`, its meter on stdin) or the pipeline
(`pipeline ADDRESS TOKENS TIMES`); `meter HOST` opens a meter.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from qubic_lab.cluster.meter import PlainLink, measure_plain, open_meter
from qubic_lab.launch_plan.network import SERVICES, Network
from qubic_lab.model.config import load_config
from qubic_lab.model.device import Link
from qubic_lab.model.plan import plan_layers
from qubic_lab.model.predict import hop_seconds, pipeline_speed, stage_seconds
from qubic_lab.pipeline import Pipeline, PipelineConfig
from qubic_lab.testbed import bed as beds
from qubic_lab.testbed import cluster
from qubic_lab.testbed.bed import Bed, module_on
from qubic_lab.testbed.cluster import ClusterSpec
from qubic_lab.testbed.network import Shape
from qubic_lab.wire import cluster_pb2 as pb

MODULE = "qubic_lab.testbed.measure"
RANKS = 3
SHAPES = (Shape(), Shape(delay_ms=20.0), Shape(rate_bps=1e8), Shape(rate_bps=1e8, delay_ms=20.0))
PROMPT = "What do three rivers and two bridges have in common?"
GOOD_ERROR = 0.15
"""Of the median: a larger one is an error of the planner."""


@dataclass(frozen=True)
class ShapeResult:
    """A pipeline over links of one shape.

    Attributes:
        shape: the shape that was set.
        link: the link from the first to the second host, as measured.
        layers: of each rank.
        predicted_ms: time between two tokens of a request alone, by the planner.
        measured_ms: the same as measured, the median.
        error: predicted / measured - 1.
    """

    shape: Shape
    link: PlainLink
    layers: tuple[int, ...]
    predicted_ms: float
    measured_ms: float
    error: float


@dataclass(frozen=True)
class BedResult:
    """All shapes, and the median of the errors' absolute values."""

    model: str
    cells: tuple[ShapeResult, ...]
    median_error: float


def measure(spec: ClusterSpec, tokens: int, repeat: int, say: Callable[[str], None]) -> BedResult:
    """Measure in a bed of each shape, which is made and removed again.

    Raises:
        QubicLabError: as for `bed.up` and `cluster.start`.
    """
    cells = []
    for shape in SHAPES:
        say(shape.text())
        bed = beds.up(Network(RANKS, coordinators=cluster.COORDINATORS), shape)
        try:
            link = measure_link(bed, "vm-1", "vm-2")
            say(f"link: {link.rtt_ms:.2f} ms, {link.gbps:.3f} Gbit/s")
            cluster.start(bed, spec)
            cells.append(_measure_pipeline(bed, spec, link, tokens, repeat))
            say(f"predicted {cells[-1].predicted_ms:.1f} ms a token, measured {cells[-1].measured_ms:.1f}")
        finally:
            beds.down()
    return BedResult(str(spec.model), tuple(cells), median(abs(cell.error) for cell in cells))


def measure_link(bed: Bed, source: str, target: str) -> PlainLink:
    """Measure a link with the meter that `net check` uses."""
    address = bed.addresses[target]
    with module_on(bed, target, MODULE, "meter", address) as opened:
        assert opened.stdout is not None
        meter = opened.stdout.readline()
        with module_on(bed, source, MODULE, "link", address) as asked:
            output, _ = asked.communicate(meter)
        opened.terminate()
    return PlainLink(**json.loads(output))


def _measure_pipeline(bed: Bed, spec: ClusterSpec, link: PlainLink, tokens: int, repeat: int) -> ShapeResult:
    layers = plan_layers(load_config(spec.model), RANKS, "C")
    address = f"{bed.addresses['vm-1']}:{SERVICES['pipeline'].ports[0]}"
    before = predicted_ms(spec, layers, link, tokens)
    with module_on(bed, "vm-1", MODULE, "pipeline", address, str(tokens), str(repeat)) as asked:
        output, _ = asked.communicate()
    predicted = (before + predicted_ms(spec, layers, link, tokens)) / 2  # the machine may have changed meanwhile
    measured = median(json.loads(output))
    return ShapeResult(bed.shape, link, layers, predicted, measured, predicted / measured - 1)


def predicted_ms(spec: ClusterSpec, layers: Sequence[int], link: PlainLink, tokens: int) -> float:
    """Return the planner's time between two tokens, with costs of a pipeline of another split over loopback."""
    from qubic_lab.bench.prediction import calibrating_layers
    from qubic_lab.bench.step_times import step_times
    from qubic_lab.trace import read_trace

    config = load_config(spec.model)
    other = calibrating_layers(config.layers, RANKS)
    with tempfile.TemporaryDirectory() as folder:
        shape = PipelineConfig(str(spec.model), RANKS, layers=other, dtype=spec.dtype, threads=spec.threads, lanes=1)
        with Pipeline.launch(replace(shape, slots=spec.slots, trace=Path(folder))) as lab:
            lab.generate(PROMPT, max_new_tokens=tokens, ignore_eos=True)
            lab.describe()  # makes the ranks write their traces
            times = step_times(read_trace(Path(folder)), other)
    # The least round trip: what the hosts add to it, until a process runs again, is in the time of a hop over loopback.
    sent = hop_seconds(config, Link(link.gbps * 1e9, link.rtt_min_ms / 2e3), spec.dtype, spec.slots)
    speed = pipeline_speed(stage_seconds(times.ranks, layers), times.hop_s + sent, 1, 1)
    return speed.idle_latency_ms


def main() -> None:
    """Do on a host what the arguments say."""
    what, place, *numbers = sys.argv[1:]
    if what == "meter":
        meter = open_meter(place)
        print(json.dumps([meter.port, meter.secret.hex()]), flush=True)
        time.sleep(60)
    elif what == "link":
        port, secret = json.loads(sys.stdin.readline())
        print(json.dumps(asdict(measure_plain(place, pb.Meter(port=port, secret=bytes.fromhex(secret))))))
    else:
        tokens, repeat = map(int, numbers)
        with Pipeline.connect(place) as lab:
            found = [lab.generate(PROMPT, max_new_tokens=tokens, ignore_eos=True) for _ in range(repeat + 1)][1:]
        print(json.dumps([1e3 / each.tokens_per_s for each in found]))


if __name__ == "__main__":
    main()
