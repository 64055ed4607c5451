"""The candidate plans over all devices or fewer, with predictions or why they are refused. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, product

from qubic_lab.errors import InputError
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.cost import (
    ModelCost,
    PartTimes,
    kv_memory_bytes,
    layer_weight_bytes,
    model_cost,
    stage_weight_bytes,
)
from qubic_lab.model.device import Device, Link
from qubic_lab.model.layout import PAGE, StageRange
from qubic_lab.model.plan import STRATEGIES, balanced_layers, fastest_layers, plan_layers
from qubic_lab.model.predict import (
    Speed,
    drafted_step,
    hop_seconds,
    most_batch,
    most_layers,
    part_times,
    pipeline_speed,
    rank_memory_bytes,
    round_seconds,
    stage_seconds,
)

GOALS = ("throughput", "latency", "memory")
REPLICAS = "D"
EXTREMES = LEAST_MEMORY, LEAST_LATENCY = "M", "L"
PLAN_STRATEGIES = (*STRATEGIES, *EXTREMES, REPLICAS)
SIMPLEST_FIRST = (REPLICAS, *STRATEGIES, *EXTREMES)
TIE = 0.01
"""Plans that differ by no more than this share count as equal, because predictions are less precise."""
MOST_BATCH = 64
"""Limit of requests per lane."""
MOST_PARTS = 64
"""Limit of the choices of devices that are tried, those with the most devices first."""


@dataclass(frozen=True)
class Setup:
    """The task of a plan: a model, devices in rank order, and lanes of `batch` requests of `context` tokens.

    `accepted` is the chance that a drafted token is right, 0 without drafts.
    """

    config: ModelConfig
    devices: tuple[Device, ...]
    link: Link
    context: int
    batch: int
    dtype: str
    quantization: str = ""
    accepted: float = 0.0

    @property
    def cost(self) -> ModelCost:
        """The costs of the model's parts."""
        return model_cost(self.config, self.dtype, self.context, self.quantization, self.packed)

    @property
    def packed(self) -> bool:
        """Whether weights are as the kernels of a CPU keep them."""
        return bool(self.quantization) or all(device.is_cpu for device in self.devices)

    @property
    def kept_tokens(self) -> int:
        """The tokens of a request for which there is memory: whole pages."""
        return -(-self.context // PAGE) * PAGE


@dataclass(frozen=True)
class Plan:
    """One split and its prediction; tuples have one value per rank.

    `tokens_per_s` is the total of all `requests`. `latency_ms` is the time between two tokens of a request that runs
    alone (of replicas: on the fastest), with as many `drafted` tokens a step as pay, `loaded_latency_ms` that while all
    run (on the slowest), without drafts. `most_batch` is the most requests per lane that memory and pipeline allow,
    `most_tokens_per_s` the speed with them.
    """

    strategy: str
    layers: tuple[int, ...]
    requests: int
    tokens_per_s: float
    latency_ms: float
    loaded_latency_ms: float
    memory_bytes: tuple[int, ...]
    idle_share: tuple[float, ...]
    most_batch: int
    most_tokens_per_s: float
    drafted: int = 0

    def __str__(self) -> str:
        if len(self.layers) == 1:
            return "D (the whole model)" if self.strategy == REPLICAS else self.strategy
        replicas = self.strategy.startswith(REPLICAS)
        return f"{self.strategy} ({f'{len(self.layers)} replicas' if replicas else '/'.join(map(str, self.layers))})"


@dataclass(frozen=True)
class Refused:
    """A strategy that cannot be used, and why."""

    strategy: str
    reason: str


@dataclass(frozen=True)
class _Chain:
    """Ranks that work on the same requests, with as many lanes as ranks: a pipeline, or one replica."""

    devices: tuple[Device, ...]
    layers: tuple[int, ...]

    def stage_s(self, setup: Setup, batch: int) -> tuple[float, ...]:
        return stage_seconds(
            [part_times(setup.cost, device, setup.dtype, batch) for device in self.devices], self.layers
        )

    def speed(self, setup: Setup, batch: int) -> Speed:
        hop_s = hop_seconds(setup.config, setup.link, setup.dtype, batch)
        return pipeline_speed(self.stage_s(setup, batch), hop_s, len(self.devices), batch)

    def token_alone(self, setup: Setup) -> tuple[float, int]:
        """Return the seconds of a token of a request that runs alone, and the drafted tokens of a step."""

        def step_s(rows: int) -> float:
            hop_s = hop_seconds(setup.config, setup.link, setup.dtype, rows)
            return round_seconds(self.stage_s(setup, rows), hop_s, lanes=1)

        drafted, token_s = drafted_step(setup.accepted, step_s)
        return token_s, drafted

    def memory_bytes(self, setup: Setup) -> tuple[int, ...]:
        cached = len(self.devices) * setup.batch * setup.kept_tokens
        form = setup.dtype, cached, setup.quantization, setup.packed
        return rank_memory_bytes(setup.config, self.layers, *form)

    def idle_share(self, setup: Setup) -> tuple[float, ...]:
        stage_s, lanes = self.stage_s(setup, setup.batch), len(self.devices)
        round_s = round_seconds(stage_s, hop_seconds(setup.config, setup.link, setup.dtype, setup.batch), lanes)
        return tuple(max(0.0, 1 - lanes * seconds / round_s) for seconds in stage_s)

    def most_batch(self, setup: Setup) -> int:
        a_request_each = len(self.devices) * setup.kept_tokens
        form = setup.dtype, a_request_each, setup.quantization, setup.packed
        return min(MOST_BATCH, most_batch(setup.config, self.devices, self.layers, *form))


def candidates(setup: Setup) -> tuple[tuple[Plan, ...], tuple[Refused, ...]]:
    """Return the plans that fit, in the order A, B, C, M, L, D, and the refused strategies with reasons.

    M and L are left out where they are as another one; so is L on equal devices, where no split is faster.
    """
    plans: list[Plan] = []
    refused: list[Refused] = []
    for strategy in PLAN_STRATEGIES:
        if strategy == LEAST_LATENCY and len(set(setup.devices)) == 1:
            continue
        try:
            layers = divide(setup, strategy)
            if strategy not in EXTREMES or layers not in [plan.layers for plan in plans]:
                plans.append(predict(setup, strategy, layers))
        except InputError as error:
            if strategy not in EXTREMES:  # they are refused for the reason of C
                refused.append(Refused(strategy, str(error)))
    return tuple(plans), tuple(refused)


def one_device(setup: Setup) -> tuple[Plan, ...]:
    """Return the fastest device that holds the whole model, alone: with a lane's requests, and with those of all lanes.

    The strategy of such a plan names the device. Empty if there is one device only, or the model fits on none.
    """
    devices = dict.fromkeys(setup.devices) if len(setup.devices) > 1 else ()
    fits = [(device, plan) for device in devices if (plan := _alone(setup, device, setup.batch))]
    if not fits:
        return ()
    device, fastest = max(fits, key=lambda fit: fit[1].tokens_per_s)
    found = [replace(fastest, strategy=f"one {device.name} alone")]
    in_one_batch = setup.batch * len(setup.devices)
    if in_one_batch <= MOST_BATCH and (batched := _alone(setup, device, in_one_batch)):
        found.append(replace(batched, strategy=f"one {device.name}, all requests in one batch"))
    return tuple(found)


def with_fewer(setup: Setup, goal: str, plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Return what leaves devices out: one device alone, and some of them where that is better than the `plans` on all.

    The strategy of a plan on some devices names them. Such a plan has no more requests than those on all devices.
    """
    found, requests = [], setup.batch * len(setup.devices)
    for devices in _parts(setup.devices):
        if (batch := requests // len(devices)) <= MOST_BATCH:
            fits, _ = candidates(replace(setup, devices=devices, batch=batch))
            names = " + ".join(device.name for device in devices)
            found += [replace(plan, strategy=f"{plan.strategy} on {names}") for plan in fits]
    best = min(found, key=lambda plan: cost_for(plan, goal), default=None)
    if best is None or choose(plans, (best,), goal) is not best:
        return one_device(setup)
    return (*one_device(setup), best)


def _parts(devices: Sequence[Device]) -> Iterator[tuple[Device, ...]]:
    """Yield choices of at least two devices, but not all, in rank order; equal devices are not told apart."""
    kinds = Counter(devices)
    for numbers in islice(product(*(range(number, -1, -1) for number in kinds.values())), MOST_PARTS):
        left = dict(zip(kinds, numbers, strict=True))
        part = []
        for device in devices:
            if left[device]:
                left[device] -= 1
                part.append(device)
        if 2 <= len(part) < len(devices):
            yield tuple(part)


def _alone(setup: Setup, device: Device, batch: int) -> Plan | None:
    try:
        return predict(replace(setup, devices=(device,), batch=batch), REPLICAS, (setup.config.layers,))
    except InputError:  # the model does not fit with so many requests
        return None


def divide(setup: Setup, strategy: str) -> tuple[int, ...]:
    """Return the layers of each device by a strategy; D gives each the whole model.

    Raises:
        InputError: the strategy does not support this number of devices, or memory does not suffice.
    """
    ranks = len(setup.devices)
    if strategy == REPLICAS:
        return (setup.config.layers,) * ranks
    if strategy == "A" and ranks > 2:
        raise InputError(f"not applicable: strategy A is for 2 devices, but there are {ranks}")
    layers = plan_layers(setup.config, ranks, strategy if strategy in ("A", "B") else "B")  # also a check of the ranks
    return layers if strategy in ("A", "B") else _by_devices(setup, strategy)


def _by_devices(setup: Setup, strategy: str) -> tuple[int, ...]:
    ranks = len(setup.devices)
    times = [part_times(setup.cost, device, setup.dtype, setup.batch) for device in setup.devices]
    cached = ranks * setup.batch * setup.kept_tokens
    form = setup.dtype, cached, setup.quantization, setup.packed
    room = [
        most_layers(setup.config, device, *form, first=rank == 0, last=rank == ranks - 1)
        for rank, device in enumerate(setup.devices)
    ]
    if strategy == LEAST_LATENCY:
        return fastest_layers([part.layer_s for part in times], setup.config.layers, room)
    if strategy == LEAST_MEMORY:
        times = [_bytes_as_times(setup, cached)] * ranks
    return balanced_layers(times, setup.config.layers, room)


def _bytes_as_times(setup: Setup, cached: int) -> PartTimes:
    """Return what parts hold in memory as if a byte took a second; what every rank holds is left out."""
    config, form = setup.config, (setup.dtype, setup.quantization, setup.packed)
    embedding, head = (StageRange(0, 0, has_embedding=first, has_head=not first) for first in (True, False))
    return PartTimes(
        embedding_s=stage_weight_bytes(config, embedding, *form),
        layer_s=layer_weight_bytes(config, *form) + kv_memory_bytes(config, 1, setup.dtype, cached),
        head_s=stage_weight_bytes(config, head, *form),
    )


def predict(setup: Setup, strategy: str, layers: Sequence[int]) -> Plan:
    """Return the prediction for a split.

    Raises:
        InputError: a rank's memory does not suffice; the message has the rank, the need and the capacity.
    """
    chains = [_Chain(setup.devices, tuple(layers))]
    if strategy == REPLICAS:
        chains = [_Chain((device,), (count,)) for device, count in zip(setup.devices, layers, strict=True)]
    memory = tuple(held for chain in chains for held in chain.memory_bytes(setup))
    _check_memory(setup, strategy, memory)
    loaded = [chain.speed(setup, setup.batch) for chain in chains]
    most = min(chain.most_batch(setup) for chain in chains)
    token_s, drafted = min(chain.token_alone(setup) for chain in chains)
    return Plan(
        strategy=strategy,
        layers=tuple(layers),
        requests=len(setup.devices) * setup.batch,
        tokens_per_s=sum(speed.tokens_per_s for speed in loaded),
        latency_ms=1e3 * token_s,
        loaded_latency_ms=max(speed.latency_ms for speed in loaded),
        memory_bytes=memory,
        idle_share=tuple(share for chain in chains for share in chain.idle_share(setup)),
        most_batch=most,
        most_tokens_per_s=sum(chain.speed(setup, most).tokens_per_s for chain in chains),
        drafted=drafted,
    )


def _check_memory(setup: Setup, strategy: str, memory_bytes: Sequence[int]) -> None:
    for rank, (device, needed) in enumerate(zip(setup.devices, memory_bytes, strict=True)):
        if needed > device.usable_bytes:
            requests = setup.batch if strategy == REPLICAS else len(setup.devices) * setup.batch
            what = "the whole model" if strategy == REPLICAS or len(setup.devices) == 1 else "its part"
            raise InputError(
                f"on rank {rank} ({device.name}) {what} with a KV cache of {requests} × "
                f"{setup.context:,} tokens needs {gigabytes(needed)}: only {gigabytes(device.usable_bytes)} of its "
                f"{gigabytes(device.memory_bytes)} are usable"
            )


def best_plan(plans: Sequence[Plan], goal: str) -> Plan:
    """Return the best plan for a goal; of plans within 1 % of the best, the simplest: D, then A, B, C, M, L."""
    least = min(cost_for(plan, goal) for plan in plans)
    equal = [plan for plan in plans if cost_for(plan, goal) <= least * (1 + TIE)]
    return min(equal, key=lambda plan: SIMPLEST_FIRST.index(plan.strategy))


def choose(plans: Sequence[Plan], fewer: Sequence[Plan], goal: str) -> Plan | None:
    """Return the best plan for a goal, or one on fewer devices that is better by more than 1 %; None: there is none."""
    best = best_plan(plans, goal) if plans else None
    single = min(fewer, key=lambda plan: cost_for(plan, goal), default=None)
    if single is None or (best is not None and cost_for(single, goal) * (1 + TIE) >= cost_for(best, goal)):
        return best
    return single


def cost_for(plan: Plan, goal: str) -> float:
    """Return what a goal minimizes: seconds per token overall, ms per token of one request, or the largest rank."""
    if goal == "throughput":
        return 1 / plan.tokens_per_s
    return plan.latency_ms if goal == "latency" else max(plan.memory_bytes)


def gigabytes(count: float) -> str:
    """Format a number of bytes in GB (10⁹ bytes)."""
    return f"{count / 1e9:.1f} GB"
