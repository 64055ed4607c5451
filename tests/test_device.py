from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest

from qubic_lab.errors import InputError
from qubic_lab.model.device import ATTAINED_SHARE, CATALOGUE, Link, check_dtype, parse_devices, parse_link


def test_a_t4_reads_what_was_measured_and_the_others_the_same_share_of_their_data_sheets() -> None:
    assert CATALOGUE["t4"].bandwidth_bytes_per_s == 259e9
    assert CATALOGUE["v100"].bandwidth_bytes_per_s == pytest.approx(900e9 * 259 / 320)
    assert pytest.approx(0.809, abs=1e-3) == ATTAINED_SHARE


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_card_says_where_its_figures_come_from_and_what_is_assumed(name: str) -> None:
    card = CATALOGUE[name]
    assert card.name == name
    assert "data sheet" in card.sources and "assumed" in card.sources
    assert all(getattr(card, field.name) > 0 for field in fields(card) if field.name not in ("name", "sources", "bf16"))
    assert card.usable_bytes < card.memory_bytes


def test_own_figures_are_taken_as_they_are() -> None:
    t4, box = parse_devices(["t4", "my-box=512MiB@25.5GB/s@900GFLOPS"])
    assert t4 is CATALOGUE["t4"]
    assert (box.name, box.memory_bytes) == ("my-box", 512 * 2**20)
    assert (box.bandwidth_bytes_per_s, box.flops_per_s) == (25.5e9, 900e9)


@pytest.mark.parametrize(
    ("text", "link"),
    [("10Gbps:0.1ms", Link(10e9, 0.1e-3)), ("940 Mbps:70us", Link(940e6, 70e-6)), ("1.5Gbps:0s", Link(1.5e9, 0.0))],
)
def test_a_link_has_bits_a_second_and_a_latency(text: str, link: Link) -> None:
    assert vars(parse_link(text)) == pytest.approx(vars(link))


@pytest.mark.parametrize(
    ("parse", "given", "said"),
    [
        (parse_link, "10Gbps", r"'10Gbps': give bandwidth and latency, such as 10Gbps:0\.1ms"),
        (parse_link, "10GB/s:0.1ms", r"'10GB/s', in bytes: .*1 GB/s is 8 Gbps"),
        (parse_link, "10gbps:0.1ms", "'10gbps': give it in Gbps or Mbps"),
        (parse_link, "-10Gbps:0.1ms", "'-10Gbps': give a number and its unit"),
        (parse_link, "0Gbps:0.1ms", "'0Gbps': it must be finite and more than 0"),
        (parse_link, f"{'9' * 400}Gbps:0.1ms", "it must be finite"),
        (parse_link, "10Gbps:0.1min", "'0.1min': give it in s or ms or us"),
        (parse_devices, ["a100"], "unknown device 'a100': give figures, such as name=16GB@259GB/s.* did you mean 'a10"),
        (parse_devices, ["t5"], "known: a10, .*, t4, v100"),
        (parse_devices, ["box=16GB@259GB/s"], "'box=16GB@259GB/s': give a name, memory, bandwidth and compute"),
        (parse_devices, ["box=16Gb@259GB/s@65TFLOPS"], "memory of device box is '16Gb': give it in GB or GiB or MB or"),
        (parse_devices, ["box=16GB@259Gbps@65TFLOPS"], "bandwidth of device box is '259Gbps': give it in GB/s or TB/s"),
        (parse_devices, ["box=16GB@259GB/s@65"], "compute of device box is '65': give .* its unit, such as 65TFLOPS"),
        (parse_devices, ["box=0GB@259GB/s@65TFLOPS"], "memory of device box is '0GB': .* more than 0"),
    ],
)
def test_what_is_wrong_is_refused_with_an_example(parse: Callable[[Any], Any], given: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        parse(given)


def test_bf16_is_refused_where_the_hardware_has_none() -> None:
    l4_and_t4 = parse_devices(["l4", "t4"])
    assert check_dtype("bf16", l4_and_t4[:1]) == "bf16"
    with pytest.raises(InputError, match="bf16, which t4 lacks in hardware: give fp16"):
        check_dtype("bf16", l4_and_t4)
