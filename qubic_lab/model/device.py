"""Devices and links of a plan: known cards with the sources of their figures, and the users' own."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qubic_lab.errors import InputError, check_choice, did_you_mean
from qubic_lab.model.layout import DTYPE_BYTES

DEVICE_EXAMPLE = "name=16GB@259GB/s@65TFLOPS"
LINK_EXAMPLE = "10Gbps:0.1ms"
CPU = "cpu"
"""How the names of devices begin that are CPUs."""

ATTAINED_SHARE = 259 / 320
"""Share of its nominal bandwidth that a T4 attains in an fp16 product of one row; assumed for all cards and compute."""
USABLE_SHARE = 0.9
"""Assumed share of a device's memory that a process can use, because of fragmentation."""
LAYER_OVERHEAD_S = 40e-6
"""Assumed launch overhead per layer: about 30 kernels, with 1 to 2 µs between two of them."""
FP32_SHARE = 1 / 8
"""Assumed ratio of fp32 to 16-bit compute, from the T4's data sheet (8.1 of 65 TFLOPS)."""

_MEMORY_UNITS = {"GB": 1e9, "GiB": 2.0**30, "MB": 1e6, "MiB": 2.0**20}
_READ_UNITS = {"GB/s": 1e9, "TB/s": 1e12}
_COMPUTE_UNITS = {"TFLOPS": 1e12, "GFLOPS": 1e9}
_LINK_UNITS = {"Gbps": 1e9, "Mbps": 1e6}
_TIME_UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}
_QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z/]+)")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Device:
    """One accelerator, with the memory bandwidth and the 16-bit compute that a decode step attains."""

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    flops_per_s: float
    sources: str
    bf16: bool = True
    usable_share: float = USABLE_SHARE
    layer_overhead_s: float = LAYER_OVERHEAD_S

    @property
    def is_cpu(self) -> bool:
        """Whether it computes with the kernels of a CPU: one of the user's own, whose name begins so."""
        return self.name.startswith(CPU)

    @property
    def usable_bytes(self) -> int:
        """Bytes for weights, KV cache and the working reserve together."""
        return int(self.memory_bytes * self.usable_share)

    def flops_per_s_in(self, dtype: str) -> float:
        """Return the operations per second in a dtype; the user's figures of a CPU are those of its dtype."""
        if self.is_cpu:
            return self.flops_per_s
        return self.flops_per_s * (FP32_SHARE if dtype == "fp32" else 1.0)


@dataclass(frozen=True)
class Link:
    """The connection of two ranks: bits per second, and the one-way latency in seconds."""

    bits_per_s: float
    latency_s: float


def _card(
    name: str, memory_gb: int, nominal_gb_per_s: float, nominal_tflops: float, title: str, bf16: bool = True
) -> Device:
    nominal = f"{title} data sheet: {memory_gb} GB, {nominal_gb_per_s:g} GB/s, {nominal_tflops:g} TFLOPS"
    return Device(
        name,
        memory_bytes=memory_gb * 10**9,
        bandwidth_bytes_per_s=nominal_gb_per_s * 1e9 * ATTAINED_SHARE,
        flops_per_s=nominal_tflops * 1e12 * ATTAINED_SHARE,
        sources=f"{nominal} nominal; assumed: {ATTAINED_SHARE:.0%} of both is attained, as a T4 does of its bandwidth",
        bf16=bf16,
    )


def _t4() -> Device:
    return Device(
        "t4",
        memory_bytes=16 * 10**9,
        bandwidth_bytes_per_s=259e9,
        flops_per_s=65e12 * ATTAINED_SHARE,
        sources=(
            "NVIDIA T4 data sheet: 16 GB, 320 GB/s, 65 TFLOPS in fp16 nominal; measured by others: about 259 GB/s in "
            f"an fp16 product of one row (github.com/vllm-project/vllm/pull/6996); assumed: {ATTAINED_SHARE:.0%} of "
            "compute is attained, too"
        ),
        bf16=False,
    )


CATALOGUE = {
    device.name: device
    for device in (
        _t4(),
        # fp16 is 64 times slower than fp32 on this card, so libraries compute fp16 weights in fp32
        _card("p4", 8, 192, 5.5, "NVIDIA Tesla P4 (compute in fp32)", bf16=False),
        _card("p100", 16, 732, 18.7, "NVIDIA Tesla P100 PCIe", bf16=False),
        _card("v100", 16, 900, 125, "NVIDIA V100 SXM2", bf16=False),
        _card("l4", 24, 300, 121, "NVIDIA L4 (without sparsity)"),
        _card("a10", 24, 600, 125, "NVIDIA A10 (without sparsity)"),
        _card("a100-40", 40, 1555, 312, "NVIDIA A100 SXM 40 GB (without sparsity)"),
        _card("a100-80", 80, 2039, 312, "NVIDIA A100 SXM 80 GB (without sparsity)"),
        _card("h100", 80, 3350, 989, "NVIDIA H100 SXM (without sparsity)"),
    )
}
"""Common cards by name."""


def parse_devices(texts: Sequence[str]) -> tuple[Device, ...]:
    """Parse devices: a name from the catalogue, or figures such as `name=16GB@259GB/s@65TFLOPS`.

    A user's own figures are memory, and attained (not nominal) bandwidth and 16-bit compute.

    Raises:
        InputError: a name is unknown, a figure is missing or has a wrong unit.
    """
    return tuple(_parse_device(text) for text in texts)


def _parse_device(text: str) -> Device:
    if "=" not in text:
        if text not in CATALOGUE:
            raise InputError(
                f"unknown device {text!r}: give figures, such as {DEVICE_EXAMPLE}, or a card; "
                f"{did_you_mean(text, CATALOGUE)}"
            )
        return CATALOGUE[text]
    name, _, figures = text.partition("=")
    parts = figures.split("@")
    if not _NAME.fullmatch(name) or len(parts) != 3:
        raise InputError(f"device is {text!r}: give a name, memory, bandwidth and compute, such as {DEVICE_EXAMPLE}")
    return Device(
        name,
        memory_bytes=int(_quantity(f"memory of device {name}", parts[0], _MEMORY_UNITS, "16GB")),
        bandwidth_bytes_per_s=_quantity(f"bandwidth of device {name}", parts[1], _READ_UNITS, "259GB/s"),
        flops_per_s=_quantity(f"compute of device {name}", parts[2], _COMPUTE_UNITS, "65TFLOPS"),
        sources="as given: bandwidth and compute taken as attained",
    )


def parse_link(text: str) -> Link:
    """Parse a link such as `10Gbps:0.1ms`: bits per second and one-way latency.

    Raises:
        InputError: a part is missing or has a wrong unit; bytes per second are refused.
    """
    parts = text.split(":")
    if len(parts) != 2:
        raise InputError(f"link is {text!r}: give bandwidth and latency, such as {LINK_EXAMPLE}")
    if parts[0].strip().endswith("B/s"):
        raise InputError(
            f"bandwidth of the link is {parts[0]!r}, in bytes: give bits per second, such as 10Gbps (1 GB/s is 8 Gbps)"
        )
    return Link(
        bits_per_s=_quantity("bandwidth of the link", parts[0], _LINK_UNITS, "10Gbps"),
        latency_s=_quantity("latency of the link", parts[1], _TIME_UNITS, "0.1ms", zero_is_allowed=True),
    )


def check_dtype(dtype: str, devices: Sequence[Device]) -> str:
    """Return `dtype` if every device supports it in hardware.

    Raises:
        InputError: the dtype is unknown, or a device does not support bf16.
    """
    check_choice("dtype", dtype, DTYPE_BYTES)
    without = [device.name for device in devices if dtype == "bf16" and not device.bf16]
    if without:
        raise InputError(f"dtype is bf16, which {without[0]} lacks in hardware: give fp16")
    return dtype


def _quantity(
    what: str, text: str, units: Mapping[str, float], example: str, *, zero_is_allowed: bool = False
) -> float:
    """Parse a number with one of `units`; a missing or unknown unit is an error."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{what} is {text!r}: give a number and its unit, such as {example}")
    number, unit = match.groups()
    if unit not in units:
        raise InputError(f"{what} is {text!r}: give it in {' or '.join(units)}, such as {example}")
    value = float(number) * units[unit]
    if not math.isfinite(value) or (value == 0 and not zero_is_allowed):
        raise InputError(f"{what} is {text!r}: it must be finite and more than 0, such as {example}")
    return value
