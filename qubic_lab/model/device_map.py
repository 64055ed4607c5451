"""The device map that accelerate makes of the same model for the same devices, for comparison."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from typing import TYPE_CHECKING

from qubic_lab.errors import QubicLabError
from qubic_lab.model.candidates import Setup
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.cost import kv_cache_bytes, model_cost
from qubic_lab.model.layout import DTYPE_BYTES
from qubic_lab.model.predict import WORKING_RESERVE_BYTES, hop_seconds, part_times
from qubic_lab.model.recommend import Baseline

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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

    Raises:
        QubicLabError: accelerate is not installed, or would leave parts of the model on the disk.
    """
    if find_spec("accelerate") is None:
        raise QubicLabError('accelerate is not installed; remedy: pip install "qubic-lab[lab]"')
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    from qubic_lab.model.decoder import torch_dtype

    model, dtype = empty_model(setup.config), torch_dtype(setup.dtype)
    no_split = list(model._no_split_modules or ())
    room = {index: max(0, device.usable_bytes - WORKING_RESERVE_BYTES) for index, device in enumerate(setup.devices)}
    with _no_word_of_absent_devices():
        balanced = get_balanced_memory(model, max_memory=room, no_split_module_classes=no_split, dtype=dtype)
        places = infer_auto_device_map(model, max_memory=balanced, no_split_module_classes=no_split, dtype=dtype)
    if not all(isinstance(place, int) for place in places.values()):
        raise QubicLabError("accelerate finds no room for all weights on these devices: it would leave some on disk")
    return read_map(places, setup.config.layers)


def read_map(places: Mapping[str, int], layers: int) -> DeviceMap:
    """Return a DeviceMap from accelerate's names; modules without an entry are on their parent's device."""

    def place_of(name: str) -> int:
        while name and name not in places:
            name = name.rpartition(".")[0]
        return places[name]

    return DeviceMap(
        embedding=place_of("model.embed_tokens"),
        layers=tuple(place_of(f"model.layers.{layer}") for layer in range(layers)),
        head=place_of("lm_head"),
    )


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


def empty_model(config: ModelConfig) -> "PreTrainedModel":
    """Return transformers' model of this shape without memory for its weights."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = AutoConfig.for_model(
        config.family,
        vocab_size=config.vocab,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        tie_word_embeddings=config.tied_head,
    )
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(shape)
    model.tie_weights()
    return model


@contextmanager
def _no_word_of_absent_devices() -> Iterator[None]:
    """Silence accelerate's warning that the planned devices are not in this machine."""
    logger = logging.getLogger("accelerate.utils.modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logger.setLevel(level)
