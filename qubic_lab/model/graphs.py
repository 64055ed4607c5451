"""A decode step as CUDA graphs: what lies between two attentions is captured once and replayed."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import count

import torch

# A stage's layers, cut where they attend: yields a layer's queries, is sent their attention, returns hidden states.
LayerSteps = Generator[torch.Tensor, torch.Tensor | None, torch.Tensor]
# Attention of a layer: given its index in the stage and its queries (R, Q, D), returns a tensor (R, K, G, D).
Attend = Callable[[int, torch.Tensor], torch.Tensor]
# The same, which writes the result into a given tensor and returns that.
AttendInto = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor]


def run_layers(steps: LayerSteps, attend: Attend) -> torch.Tensor:
    """Run a stage's layers without graphs; return their hidden states."""
    mixed = None
    try:
        for layer in count():
            mixed = attend(layer, steps.send(mixed))
    except StopIteration as end:
        hidden: torch.Tensor = end.value
    return hidden


@dataclass(frozen=True)
class _Captured:
    """The graphs of a step of one shape: one before each attention, which reads `queries`, and one after the last."""

    inputs: tuple[torch.Tensor, ...]
    mixed: torch.Tensor
    replays: list[Callable[[], None]]
    queries: list[torch.Tensor]
    hidden: torch.Tensor


class StepGraphs:
    """The captured decode steps of a decoder, one for each shape of a lane.

    Attention stays outside the graphs and groups slots by their own rounded length, as it does without graphs, so no
    kernel sees a length that depends on a neighbour, and an answer has the bits that it has alone. All other kernels
    have shapes that the lane fixes, so graphs of one shape serve every length and every lane.

    The graphs write to the addresses of the KV cache: drop them whenever the cache moves.
    """

    def __init__(self) -> None:
        """Begin without graphs; the first step of a shape captures them."""
        self._captured: dict[tuple[torch.Size, ...], _Captured] = {}
        self._stream: torch.cuda.Stream | None = None
        self._pool: torch.cuda._POOL_HANDLE | None = None

    def __len__(self) -> int:
        """Return the number of captured steps."""
        return len(self._captured)

    def clear(self) -> None:
        """Drop all graphs."""
        self._captured.clear()
        self._pool = None

    def run(
        self,
        layers: Callable[..., LayerSteps],
        inputs: tuple[torch.Tensor, ...],
        attend: AttendInto,
        mixed: torch.Tensor,
    ) -> torch.Tensor:
        """Run a step; return its hidden states, which later steps leave alone.

        Args:
            layers: begins a step with tensors of the shapes of `inputs`. It runs twice before the first replay, so
                running it again must change nothing.
            inputs: all that changes from step to step, except attention.
            attend: a layer's attention, over lengths that may change from step to step.
            mixed: a tensor for its result.
        """
        shapes = tuple(tensor.shape for tensor in inputs)
        if shapes not in self._captured:
            self._captured[shapes] = self._capture(layers, tuple(tensor.clone() for tensor in inputs), attend, mixed)
        step = self._captured[shapes]
        for static, given in zip(step.inputs, inputs, strict=True):
            static.copy_(given)
        *before_attention, last = step.replays
        for layer, replay in enumerate(before_attention):
            replay()
            attend(layer, step.queries[layer], step.mixed)
        last()
        return step.hidden.clone()

    def warm_up(self, run: Callable[[], object]) -> None:
        """Run on the stream of the captures, because kernels are loaded and workspaces allocated at their first use."""
        self._stream = self._stream or torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that `run` starts; return a function that starts them again on the same addresses.

        All graphs share one pool of memory: they never run at once, and what one leaves for another is held.
        """
        graph = torch.cuda.CUDAGraph()
        # thread_local: threads that send and receive may call CUDA during a capture
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            run()
        self._pool = graph.pool()
        return graph.replay

    def _capture(
        self,
        layers: Callable[..., LayerSteps],
        inputs: tuple[torch.Tensor, ...],
        attend: AttendInto,
        mixed: torch.Tensor,
    ) -> _Captured:
        self.warm_up(lambda: run_layers(layers(*inputs), lambda layer, q_RQD: attend(layer, q_RQD, mixed)))
        steps = layers(*inputs)
        queries: list[torch.Tensor] = []
        hidden: list[torch.Tensor] = []

        def advance() -> None:
            try:
                queries.append(steps.send(mixed if queries else None))
            except StopIteration as end:
                hidden.append(end.value)

        replays = []
        while not hidden:
            replays.append(self.record(advance))
        return _Captured(inputs, mixed, replays, queries, hidden[0])
