"""Decode steps cut into CUDA graphs: on the CPU with a recorder in the place of CUDA, and on a GPU as they are."""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from qubic_lab.errors import InputError
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.decoder import DTYPES, Decoder, lane_rows
from qubic_lab.model.graphs import StepGraphs
from qubic_lab.model.layout import stage_ranges

SLOTS = 3
"""Of each of two lanes."""
PROMPTS = {0: 5, 1: 63, 2: 130, 3: 1, 5: 70}
"""Tokens by slot; slot 4 stays empty. Slot 1 crosses a block of the cache while it decodes."""
STEPS: list[tuple[int, list[int]]] = [
    (0, [0, 1]),
    (3, [3]),
    (0, [1]),
    (0, [0, 1, 2]),
    (3, [3, 5]),
    (0, [0, 2]),
    (3, [5]),
    (0, [0, 1, 2]),
]
"""A lane's first slot and its active slots; a slot's prompt comes before its first step."""
CASES = [
    ("cpu", "fp32"),
    ("cpu", "bf16"),
    pytest.param("cuda", "fp32", marks=pytest.mark.gpu),
    pytest.param("cuda", "fp16", marks=pytest.mark.gpu),
]


class _Recorder(TorchDispatchMode):
    """Records each operation with its tensors, as a CUDA graph does, and repeats them on the same memory."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            repeated = func(*args, **kwargs)
            if isinstance(result, torch.Tensor) and repeated.data_ptr() != result.data_ptr():
                result.copy_(repeated)


def record(graphs: StepGraphs, run: Callable[[], None]) -> Callable[[], None]:
    """Stand in for `StepGraphs.record` on a CPU."""
    with _Recorder() as recorder:
        run()
    return recorder.replay


def decoder_of(folder: Path, dtype: str, device: str) -> Decoder:
    checkpoint = Checkpoint.open(folder)
    stage = stage_ranges((checkpoint.config.layers,))[0]
    return Decoder(checkpoint, stage, DTYPES[dtype], torch.device(device))


def answers(decoder: Decoder, slots: Collection[int] = tuple(PROMPTS)) -> dict[int, torch.Tensor]:
    """Hidden states (positions, H) by slot of the prompts and steps of some slots; all others are idle."""
    decoder.reset(2 * SLOTS)
    tokens = torch.randint(0, 300, (2 * SLOTS, 200), generator=torch.Generator().manual_seed(1)).tolist()
    lengths: dict[int, int] = {}
    hidden: dict[int, list[torch.Tensor]] = {slot: [] for slot in slots}
    with torch.inference_mode():
        for first, active in STEPS:
            row_tokens, positions = [7] * lane_rows(SLOTS, decoder.dtype), [-1] * SLOTS
            for slot in set(active).intersection(slots):
                if slot not in lengths:
                    lengths[slot] = PROMPTS[slot]
                    hidden[slot].append(decoder.prefill(decoder.embed(tokens[slot][: PROMPTS[slot]]), slot, 0))
                row_tokens[slot - first], positions[slot - first] = tokens[slot][lengths[slot]], lengths[slot]
                lengths[slot] += 1
            if max(positions) >= 0:
                states = decoder.decode(decoder.embed(row_tokens), first, positions)
                for slot in set(active).intersection(slots):
                    hidden[slot].append(states[slot - first : slot - first + 1])
    return {slot: torch.cat(states) for slot, states in hidden.items()}


@pytest.mark.parametrize(("first_capacity", "captures"), [(1024, 1), (0, 3)])
@pytest.mark.parametrize(("device", "dtype"), CASES)
def test_replayed_steps_have_the_bits_of_steps_without_graphs(
    device: str, dtype: str, first_capacity: int, captures: int, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One capture serves both lanes, all lengths and idle rows; each growth of the cache needs a new one."""
    warm_up = Mock(side_effect=StepGraphs.warm_up if device == "cuda" else lambda graphs, run: run())
    monkeypatch.setattr(StepGraphs, "warm_up", lambda graphs, run: warm_up(graphs, run))
    if device == "cpu":
        monkeypatch.setattr(StepGraphs, "record", record)
    monkeypatch.setattr("qubic_lab.model.decoder.FIRST_GPU_CAPACITY", first_capacity)
    decoder = decoder_of(tiny, dtype, device)
    decoder.graphs = None
    plain = answers(decoder)
    for slot in PROMPTS:
        assert torch.equal(plain[slot], answers(decoder, [slot])[slot])
    decoder.graphs = StepGraphs()
    replayed = answers(decoder)
    assert all(torch.equal(plain[slot], replayed[slot]) for slot in PROMPTS)
    assert (warm_up.call_count, len(decoder.graphs)) == (captures, 1)
    decoder.reset(SLOTS)
    assert len(decoder.graphs) == 0


@pytest.mark.gpu
def test_on_a_gpu_attention_uses_the_memory_efficient_kernel_only(tiny: Path) -> None:
    decoder = decoder_of(tiny, "fp16", "cuda")
    decoder.graphs = None
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        answers(decoder)
    used = {event.key for event in profiled.key_averages() if "scaled_dot_product" in event.key}
    assert used == {"aten::scaled_dot_product_attention", "aten::_scaled_dot_product_efficient_attention"}


@pytest.mark.gpu
def test_on_a_gpu_bf16_is_refused_where_its_attention_is_missing(tiny: Path) -> None:
    if torch.cuda.get_device_capability() >= (8, 0):
        pytest.skip("this GPU computes in bf16")
    with pytest.raises(InputError, match=r"no memory-efficient attention for torch.bfloat16: use fp16 or fp32"):
        decoder_of(tiny, "bf16", "cuda")
