"""The device map that accelerate makes of the same model for the same devices, for comparison.

It is worked out here by accelerate's rule; that takes a millisecond, and to ask the library takes seconds.
"""

from dataclasses import dataclass
from itertools import groupby

from qubic_lab.errors import QubicLabError
from qubic_lab.model.candidates import Setup
from qubic_lab.model.cost import kv_cache_bytes, model_cost
from qubic_lab.model.layout import DTYPE_BYTES, layer_tensors
from qubic_lab.model.predict import WORKING_RESERVE_BYTES, hop_seconds, part_times
from qubic_lab.model.recommend import Baseline


@dataclass(frozen=True)
class DeviceMap:
    """Device indices of the embedding, each layer and the head by accelerate."""

    embedding: int
    layers: tuple[int, ...]
    head: int

    @property
    def hops(self) -> int:
        """Number of changes between devices in a step, including the return to the embedding's device."""
        way = [device for device, _ in groupby((self.embedding, *self.layers, self.head))]
        return len(way) - 1 + (way[-1] != way[0])


def accelerate_baseline(setup: Setup) -> Baseline:
    """Return the prediction for accelerate's own split, with the same times as our plans.

    Its devices compute one after the other without a second lane in flight, so tokens/s are those of one
    lane. Hops are counted with the setup's link, although accelerate needs all devices in one host.

    Raises:
        QubicLabError: as for infer_map.
    """
    return map_baseline(setup, infer_map(setup))


def infer_map(setup: Setup) -> DeviceMap:
    """Return accelerate's balanced map, `device_map="auto"`, for the usable memory minus the working reserve.

    By its rule each device but the last may take an equal share of the weights and a quarter more than a layer (or than
    the mean of the matrices, if that is more). Parts fill one device after the other, in their order, and the first
    device also keeps room for the largest part that is still to come. A tied head is where the embedding is.

    Raises:
        QubicLabError: accelerate would leave parts of the model on the disk.
    """
    config, size = setup.config, DTYPE_BYTES[setup.dtype]
    cost = model_cost(config, setup.dtype)
    norm, matrix, angles = config.hidden * size, cost.embedding.weight_bytes, 2 * (config.head_dim // 2) * size
    parts = [matrix, *[cost.layer.weight_bytes] * config.layers, norm, angles, *([] if config.tied_head else [matrix])]
    modules = (
        config.layers * len({name.rpartition(".")[0] for name in layer_tensors(config, 0)}) + len(parts) - config.layers
    )
    rooms = [max(0, device.usable_bytes - WORKING_RESERVE_BYTES) for device in setup.devices]
    usable = [index for index, room in enumerate(rooms) if room]
    share = sum(parts) // max(1, len(usable)) + int(1.25 * max(cost.layer.weight_bytes, sum(parts) // modules))
    for index in usable[:-1]:
        rooms[index] = min(rooms[index], share)
    places = _fill(parts, rooms)
    return DeviceMap(places[0], tuple(places[1 : 1 + config.layers]), places[0] if config.tied_head else places[-1])


def _fill(parts: list[int], rooms: list[int]) -> list[int]:
    """Return the device of each part; an error if they do not all find room."""
    places: list[int] = []
    device = used = 0
    for part, bytes in enumerate(parts):
        kept = max(parts[part + 1 :], default=0)
        while device < len(rooms) and used + bytes > rooms[device] - (kept if device == 0 else 0):
            device, used = device + 1, 0
        places.append(device)
        used += bytes
    if device == len(rooms):
        raise QubicLabError("accelerate finds no room for all weights on these devices: it would leave some on disk")
    return places


def map_baseline(setup: Setup, device_map: DeviceMap) -> Baseline:
    """Return the prediction for a device map: the requests of one lane pass one device after the other."""
    counts = tuple(device_map.layers.count(device) for device in range(len(setup.devices)))
    seconds = {batch: _step_seconds(setup, device_map, batch) for batch in (1, setup.batch)}
    return Baseline(
        name="accelerate device_map",
        layers=counts,
        requests=setup.batch,
        tokens_per_s=setup.batch / seconds[setup.batch],
        latency_ms=1e3 * seconds[1],
        memory_bytes=_memory_bytes(setup, device_map, counts),
    )


def _step_seconds(setup: Setup, device_map: DeviceMap, batch: int) -> float:
    cost = model_cost(setup.config, setup.dtype, setup.context)
    times = [part_times(cost, device, setup.dtype, batch) for device in setup.devices]
    return (
        times[device_map.embedding].embedding_s
        + sum(times[device].layer_s for device in device_map.layers)
        + times[device_map.head].head_s
        + device_map.hops * hop_seconds(setup.config, setup.link, setup.dtype, batch)
    )


def _memory_bytes(setup: Setup, device_map: DeviceMap, counts: tuple[int, ...]) -> tuple[int, ...]:
    cost = model_cost(setup.config, setup.dtype)
    held = [
        WORKING_RESERVE_BYTES
        + count * cost.layer.weight_bytes
        + kv_cache_bytes(setup.config, count, setup.dtype, setup.batch * setup.context)
        for count in counts
    ]
    held[device_map.embedding] += cost.embedding.weight_bytes
    held[device_map.head] += cost.head.weight_bytes
    if setup.config.tied_head and device_map.head != device_map.embedding:
        held[device_map.head] += setup.config.vocab * setup.config.hidden * DTYPE_BYTES[setup.dtype]
    return tuple(held)
