"""How many layers each rank gets: strategies A, B and C. Pure: whole numbers in, whole numbers out."""

from collections.abc import Sequence
from itertools import pairwise

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.cost import model_cost

STRATEGIES = ("A", "B", "C")


def plan_layers(config: ModelConfig, ranks: int, strategy: str, cut: int | None = None) -> tuple[int, ...]:
    """Return the number of layers of each rank; on one rank every strategy is the whole model.

    A: two ranks, the embedding and the layers before `cut` (default: half, rounded up) / the others and the head.
    B: equal counts, one more on the first ranks where the division leaves a rest.
    C: balanced by the bytes that a decode step reads.

    Raises:
        InputError: as check_strategy; or more ranks than layers, or a cut that leaves a rank without layers.
    """
    check_strategy(ranks, strategy, cut)
    if ranks > config.layers:
        raise InputError(
            f"ranks is {ranks}, more than the model's {config.layers} layers: give at most {config.layers}"
        )
    if ranks == 1:
        return (config.layers,)
    if strategy == "A":
        return _cut(config.layers, (config.layers + 1) // 2 if cut is None else cut)
    if strategy == "B":
        return equal_counts(config.layers, ranks)
    cost = model_cost(config, "bf16")
    return balanced_counts(
        [cost.layer.decode_bytes] * config.layers, ranks, cost.embedding.decode_bytes, cost.head.decode_bytes
    )


def check_strategy(ranks: int, strategy: str, cut: int | None = None) -> None:
    """Check what can be checked before the model is known.

    Raises:
        InputError: unknown strategy, fewer than one rank, strategy A on more than two ranks, or a cut without it.
    """
    check_choice("strategy", strategy, STRATEGIES)
    check_at_least("ranks", ranks, 1)
    if strategy == "A" and ranks > 2:
        raise InputError(f"ranks is {ranks} with strategy A, which is for 2 ranks: give strategy B or C")
    if cut is not None and (strategy, ranks) != ("A", 2):
        raise InputError(f"cut is {cut} with strategy {strategy} on {ranks} ranks: it is for strategy A on 2 ranks")


def _cut(layers: int, cut: int) -> tuple[int, ...]:
    if not 1 <= cut < layers:
        raise InputError(f"cut is {cut}: it must be between 1 and {layers - 1}, so that each rank has a layer")
    return (cut, layers - cut)


def equal_counts(layers: int, ranks: int) -> tuple[int, ...]:
    """Return counts that differ by one at most, the larger ones first: the last rank has the head as well."""
    count, rest = divmod(layers, ranks)
    return tuple(count + (rank < rest) for rank in range(ranks))


def balanced_counts(layer_costs: Sequence[float], ranks: int, first_cost: float, last_cost: float) -> tuple[int, ...]:
    """Return the contiguous division whose most expensive rank is cheapest; of those, the lightest last rank's.

    `first_cost` and `last_cost` come on top of the first and the last rank's layers (embedding, head). Each rank has
    at least one layer. Dynamic programming over the ranks, in O(ranks · layers²).
    """
    layers = len(layer_costs)
    before = [0.0]  # before[n]: cost of the first n layers
    for cost in layer_costs:
        before.append(before[-1] + cost)
    # best[n]: (dearest rank, last rank, where each rank ends) of the best division of the first n layers so far
    best: dict[int, tuple[float, float, tuple[int, ...]]]
    best = {n: (first_cost + before[n], first_cost + before[n], (n,)) for n in range(1, layers + 1)}
    for rank in range(1, ranks):
        extra = last_cost if rank == ranks - 1 else 0.0
        best = {
            n: min(
                (max(dearest, own := before[n] - before[end] + extra), own, (*ends, n))
                for end, (dearest, _, ends) in best.items()
                if end < n
            )
            for n in range(rank + 1, layers + 1)
        }
    return tuple(end - begin for begin, end in pairwise((0, *best[layers][2])))
