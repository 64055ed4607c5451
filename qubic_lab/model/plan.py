"""Layer counts of ranks by strategies A, B and C. Pure."""

from collections.abc import Sequence

from qubic_lab.errors import InputError, check_at_least, check_choice
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.cost import PartTimes, model_cost

STRATEGIES = ("A", "B", "C")
LANE_REQUESTS = 8
"""Requests of a lane for which strategy C is balanced."""


def plan_layers(
    config: ModelConfig, ranks: int, strategy: str, cut: int | None = None, quantization: str = ""
) -> tuple[int, ...]:
    """Return the number of layers of each rank; with one rank every strategy gives the whole model.

    A: two ranks, the embedding and the layers before `cut` (default: half, rounded up) / the others and the head.
    B: equal counts, with one more on the first ranks if there is a remainder.
    C: balanced by the bytes that a decode step of LANE_REQUESTS moves, with weights in `quantization`.

    Raises:
        InputError: as for check_strategy; or there are more ranks than layers, or a rank has no layers.
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
    cost = model_cost(config, "bf16", 0, quantization)
    embedding, layer, head = (part.step_bytes(LANE_REQUESTS) for part in (cost.embedding, cost.layer, cost.head))
    a_byte_a_second = PartTimes(embedding, layer, head)
    return balanced_layers([a_byte_a_second] * ranks, config.layers)


def check_strategy(ranks: int, strategy: str, cut: int | None = None) -> None:
    """Check the values that do not depend on the model.

    Raises:
        InputError: the strategy is unknown, there is less than one rank, or strategy A or `cut` is used without 2
        ranks.
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
    """Return counts that differ by at most one, larger ones first, because the last rank also has the head."""
    count, rest = divmod(layers, ranks)
    return tuple(count + (rank < rest) for rank in range(ranks))


def balanced_layers(
    rank_times: Sequence[PartTimes], layers: int, most_layers: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return the split of equal layers with the fastest slowest rank, and among those with the fastest last rank.

    Each rank has its own times, at least one layer, and at most `most_layers` (default: no limit). Dynamic
    programming over the ranks, in O(ranks · layers²).

    Raises:
        InputError: the limits leave layers over, or there are fewer layers than ranks.
    """
    limits = [layers] * len(rank_times) if most_layers is None else most_layers
    _check_room(layers, limits)
    # best[n]: (slowest rank, last rank, layers of each rank) of the best split of the first n layers so far
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for rank, (times, limit) in enumerate(zip(rank_times, limits, strict=True)):
        last = rank == len(rank_times) - 1
        longer: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for count in range(1, limit + 1):
            own_s = times.stage_s(count, first=rank == 0, last=last)
            befores = [layers - count] if last else range(layers - count + 1)
            for before in befores:
                if before in best:
                    slowest_s, _, counts = best[before]
                    division = (max(slowest_s, own_s), own_s, (*counts, count))
                    known = longer.get(before + count)
                    if known is None or division < known:
                        longer[before + count] = division
        best = longer
    return best[layers][2]


def fastest_layers(layer_times: Sequence[float], layers: int, most_layers: Sequence[int]) -> tuple[int, ...]:
    """Return the split of equal layers with the smallest sum of times: the fastest ranks have as many as they can.

    Each rank has its own time of a layer, at least one layer, and at most `most_layers`.

    Raises:
        InputError: the limits leave layers over, or there are fewer layers than ranks.
    """
    _check_room(layers, most_layers)
    counts, left = [1] * len(layer_times), layers - len(layer_times)
    for rank in sorted(range(len(counts)), key=layer_times.__getitem__):
        more = min(left, most_layers[rank] - 1)
        counts[rank] += more
        left -= more
    return tuple(counts)


def _check_room(layers: int, most_layers: Sequence[int]) -> None:
    if layers < len(most_layers) or min(most_layers) < 1 or sum(most_layers) < layers:
        room = " + ".join(map(str, most_layers))
        raise InputError(f"{layers} layers cannot be divided: each rank needs one, and there is room for {room}")
