"""The values of a coordinator's `/metrics` that are read on demand: tasks, nodes, answers, sources of the oracle."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter

from prometheus_client.metrics_core import Metric

from qubic_lab.cluster.fleet import NodeView
from qubic_lab.cluster.health import Gate
from qubic_lab.cluster.tasks import TaskCounts
from qubic_lab.metrics import MOST_VALUES, Sample, counter, gauge
from qubic_lab.wire.pipeline_pb2 import RankCounts

_ENDED = ("completed", "failed", "dead", "cancelled")
_GAUGES: tuple[tuple[str, str, Callable[[NodeView], float | None]], ...] = (
    ("health_score", "Health, 0 to 100.", attrgetter("score")),
    ("cpu_ratio", "Compute in use, of the busiest of machine and GPUs.", attrgetter("record.state.cpu_share")),
    ("memory_ratio", "Memory in use, of the fullest of machine and GPUs.", attrgetter("record.state.memory_share")),
    ("response_seconds", "Mean time of the latest answers.", attrgetter("response_s")),
    ("error_ratio", "Share of the latest requests that failed.", attrgetter("error_share")),
    ("tokens_per_second", "Speed of one answer, of the latest ones or at the start.", attrgetter("tokens_per_s")),
    ("outstanding_requests", "Requests that run or wait there.", attrgetter("outstanding_requests")),
    ("outstanding_tokens", "Tokens still to come there, at most.", attrgetter("outstanding_tokens")),
    ("slots", "Requests that can run at the same time.", attrgetter("record.registration.capabilities.slots")),
    ("context_tokens", "Tokens whose keys and values are held.", attrgetter("record.state.context_tokens")),
    ("context_limit_tokens", "Tokens that its slots could hold.", attrgetter("record.state.most_context_tokens")),
    ("resident_memory_bytes", "Resident memory of all its processes.", attrgetter("record.state.resident_bytes")),
    ("disk_free_bytes", "Free space of its disk.", attrgetter("record.state.disk_free_bytes")),
    ("disk_size_bytes", "Size of its disk.", attrgetter("record.state.disk_size_bytes")),
    (
        "certificate_expiry_timestamp_seconds",
        "When its certificate expires, since 1970.",
        lambda view: view.record.state.certificate_ends_s or None,
    ),
)
_COUNTERS: tuple[tuple[str, str, Callable[[NodeView], float]], ...] = (
    ("tokens", "Tokens given since the node started.", attrgetter("record.state.tokens")),
    ("finished_requests", "Requests finished since the node started.", attrgetter("record.state.finished")),
    ("failed_requests", "Requests failed since the node started.", attrgetter("record.state.failed")),
    ("pipeline_restarts", "Restarts of the pipeline since the node started.", attrgetter("record.state.restarts")),
)
_RANK_COUNTERS: tuple[tuple[str, str, Callable[[RankCounts], float]], ...] = (
    ("steps", "Micro-batches that a rank has computed.", attrgetter("steps")),
    ("tokens", "Tokens of its micro-batches: of prompts, and one for each token of an answer.", attrgetter("tokens")),
    ("compute_seconds", "Time of computing its micro-batches.", attrgetter("compute_s")),
    ("wait_seconds", "Time of waiting for the rank before it, between two micro-batches.", attrgetter("wait_s")),
)
_RANK_GAUGES: tuple[tuple[str, str, Callable[[RankCounts], float | None]], ...] = (
    ("resident_memory_bytes", "Resident memory of its process.", attrgetter("resident_bytes")),
    ("gpu_memory_bytes", "Memory of its tensors on a GPU.", lambda counts: counts.gpu_bytes or None),
)


def task_families(counts: TaskCounts, working: int) -> list[Metric]:
    """Return the metrics of the queue, which all coordinators of a cluster share, and of this coordinator's work."""
    now = [((state,), getattr(counts, state)) for state in ("pending", "processing")]
    ended = [((state,), getattr(counts, state)) for state in _ENDED]
    return [
        gauge("tasks", "Tasks that wait or are worked on, in the whole cluster.", now, ["state"]),
        counter("tasks_ended", "Tasks by their end, in the whole cluster.", ended, ["state"]),
        counter("tasks_submitted", "Tasks submitted, in the whole cluster.", [((), counts.submitted)]),
        counter("task_attempts", "Attempts begun, in the whole cluster.", [((), counts.taken)]),
        counter("task_leases_reclaimed", "Leases taken back from lost consumers.", [((), counts.reclaimed)]),
        counter("task_writes_refused", "Writes of lost consumers.", [((), counts.fenced)]),
        gauge("working_tasks", "Tasks that this coordinator works on.", [((), working)]),
    ]


def node_families(views: Sequence[NodeView]) -> list[Metric]:
    """Return the metrics of nodes, from the last heartbeat of each.

    A node that is silent has no values of its own but its state, and one that is removed has none. Of more than
    MOST_VALUES the first by name are shown.
    """
    shown = sorted(views, key=lambda view: view.record.id)[:MOST_VALUES]
    heard = [view for view in shown if view.gate is not Gate.SILENT]
    gates = Counter(str(view.gate or "open") for view in views)
    families = [
        gauge("nodes", "Nodes by the gate that closes them.", [((gate,), gates[gate]) for gate in gates], ["gate"]),
        gauge("nodes_left_out", "Nodes without metrics, being too many.", [((), len(views) - len(shown))]),
        _of_nodes("up", "Whether the node gets requests.", shown, lambda view: view.gate is None),
        _of_nodes("draining", "Whether the node was told to end.", shown, lambda view: view.gate is Gate.DRAINING),
        _of_nodes("heartbeat_age_seconds", "Time since the last heartbeat.", shown, attrgetter("record.age_s")),
    ]
    families += [_of_nodes(name, text, heard, read) for name, text, read in _GAUGES]
    families += rank_families({view.record.id: view.record.state.ranks for view in heard}, ("node", "rank"))
    return families + [
        counter(f"node_{name}", text, [((view.record.id,), read(view)) for view in heard], ["node"])
        for name, text, read in _COUNTERS
    ]


def rank_families(ranks: Mapping[str, Sequence[RankCounts]], labels: Sequence[str] = ("rank",)) -> list[Metric]:
    """Return the metrics of the ranks of each node, some seconds old; with ("rank",) as labels nodes are not named."""
    found = [
        ((node, str(each.rank))[-len(labels) :], each) for node, all_ in ranks.items() for each in all_[:MOST_VALUES]
    ]
    return [
        counter(f"rank_{name}", text, [(who, read(each)) for who, each in found], labels)
        for name, text, read in _RANK_COUNTERS
    ] + [
        gauge(f"rank_{name}", text, [(who, value) for who, each in found if (value := read(each)) is not None], labels)
        for name, text, read in _RANK_GAUGES
    ]


def answer_families(sums: Mapping[str, float]) -> list[Metric]:
    """Return the metrics of answers by mode (single, consensus), from the sums of `Coordinator.answers`."""
    texts = {"votes": "Answers", "auto": "Answers whose mode the load decided", "tokens": "Tokens of answers"}
    return [
        counter(
            f"mode_{'answers' if what == 'votes' else f'{what}_answers' if what == 'auto' else what}",
            f"{text}, by mode.",
            [((key.partition(" ")[0],), value) for key, value in sums.items() if key.endswith(f" {what}")],
            ["mode"],
        )
        for what, text in texts.items()
    ]


def _of_nodes(name: str, text: str, views: Iterable[NodeView], read: Callable[[NodeView], float | None]) -> Metric:
    values = [(view.record.id, read(view)) for view in views]
    samples: list[Sample] = [((node,), float(value)) for node, value in values if value is not None]
    return gauge(f"node_{name}", text, samples, ["node"])
