"""Packed hidden states are fewer bytes and the same bits, and nothing else that travels is touched."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.bench.compression import _size_of
from qubic_lab.pipeline.message import Kind, Message
from qubic_lab.pipeline.packing import pack, unpack
from qubic_lab.pipeline.transport import LoopTransport, PackedTransport

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CPU = torch.device("cpu")


def bits(values: torch.Tensor) -> bytes:
    return values.contiguous().view(torch.uint8).numpy().tobytes()


def hidden(rows: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(rows, 576, generator=torch.Generator().manual_seed(rows)).to(dtype)


@given(st.sampled_from(DTYPES), st.integers(1, 40), st.binary(min_size=4, max_size=64))
def test_any_bits_come_back(dtype: torch.dtype, columns: int, seed: bytes) -> None:
    raw = np.resize(np.frombuffer(seed, np.uint8), 3 * columns * dtype.itemsize)
    values = torch.from_numpy(raw.copy()).view(dtype).view(3, columns)
    assert bits(unpack(pack(values), (3, columns), dtype)) == bits(values)


@pytest.mark.parametrize(("dtype", "share"), [(torch.bfloat16, 0.82), (torch.float16, 0.9), (torch.float32, 0.91)])
def test_hidden_states_become_smaller(dtype: torch.dtype, share: float) -> None:
    values = hidden(8, dtype)
    assert len(pack(values)) < share * values.nbytes


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_transport_packs_hidden_states_alone(dtype: torch.dtype) -> None:
    inner = LoopTransport()
    transport = PackedTransport(inner)
    values, tokens, scores = hidden(4, dtype), torch.arange(4), torch.rand(4, dtype=torch.float64)
    transport.send(Message(Kind.PREFILL, 7, count=4), values, tokens)
    transport.send(Message(Kind.PREFILL, 8, count=4), scores)
    assert inner._payloads[0].nbytes < values.nbytes and inner._payloads[1] is tokens and inner._payloads[2] is scores
    assert transport.receive() == Message(Kind.PREFILL, 7, count=4)
    assert bits(transport.receive_payload((4, 576), dtype, CPU)) == bits(values)
    assert torch.equal(transport.receive_payload((4,), torch.int64, CPU), tokens)
    assert transport.receive() == Message(Kind.PREFILL, 8, count=4)
    assert torch.equal(transport.receive_payload((4,), torch.float64, CPU), scores)


def test_what_cannot_be_made_smaller_goes_as_it_is() -> None:
    inner = LoopTransport()
    random = torch.from_numpy(np.random.default_rng(0).integers(0, 256, 64, np.uint8)).view(torch.bfloat16).view(1, 32)
    PackedTransport(inner).send(Message(Kind.DECODE, 1), random)
    assert inner._payloads[0] is random and inner._messages[0].packed == 0


def test_the_link_on_which_it_pays_follows_from_bytes_and_times() -> None:
    size = _size_of(hidden(64))
    saved_s = 8 * (size.plain_bytes - size.packed_bytes) / (size.pays_below_gbps * 1e9)
    assert math.isclose(saved_s, (size.pack_us + size.unpack_us) / 1e6, rel_tol=1e-9)
