"""NVIDIA's cards, driver and CUDA as the driver's own program tells them, and what a build of torch runs on."""

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"
"""PCI's number of the vendor, and the first digits of the class of graphics cards."""
ANSWER_S = 6.0
_QUERY = "--query-gpu=name,driver_version,compute_cap,memory.total"


@dataclass(frozen=True)
class Card:
    """A card; `capability` is that of its CUDA cores, 7.5 for a T4."""

    name: str
    driver: str
    capability: str
    total_bytes: int


@dataclass(frozen=True)
class Graphics:
    """The cards that the driver sees, the newest CUDA that it knows, and why it sees none.

    `in_slots` counts the cards that are plugged in, with or without a driver.
    """

    cards: tuple[Card, ...] = ()
    cuda: str = ""
    in_slots: int = 0
    trouble: str = ""

    @property
    def there(self) -> bool:
        """Whether this machine has a card, usable or not."""
        return bool(self.cards or self.in_slots or self.trouble)


def read_graphics() -> Graphics:
    """Ask the driver through nvidia-smi, and the PCI bus without it."""
    in_slots = count_slots(PCI)
    if shutil.which("nvidia-smi") is None:
        return Graphics(in_slots=in_slots)
    try:
        cards = parse_cards(_run("nvidia-smi", _QUERY, "--format=csv,noheader,nounits"))
        version = re.search(r"CUDA Version *: *([\d.]+)", _run("nvidia-smi"))
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "output", "") or str(error)).strip().splitlines()
        return Graphics(in_slots=in_slots, trouble=said[0] if said else "nvidia-smi fails")
    return Graphics(cards, version[1] if version else "", in_slots)


def count_slots(pci: Path) -> int:
    """Return how many of NVIDIA's graphics cards are on the PCI bus."""
    found = 0
    for device in pci.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor == NVIDIA and kind.startswith(DISPLAY)
    return found


def parse_cards(text: str) -> tuple[Card, ...]:
    """Read a line of CSV for each card; a ValueError if a line is none."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return tuple(Card(name, driver, capability, int(total) << 20) for name, driver, capability, total in rows)


def runs_on(architectures: Iterable[str], capability: str) -> bool:
    """Return whether a build for architectures such as sm_75 or compute_90 has code for a card's capability.

    Code of a card runs on later ones of the same major number; intermediate code (compute_…) on all later ones.
    Source: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#binary-compatibility
    """
    major, minor = map(int, capability.split("."))
    for name in architectures:
        if match := re.fullmatch(r"(sm|compute)_(\d+)(\d)", name):
            of = int(match[2]), int(match[3])
            if of <= (major, minor) and (match[1] == "compute" or of[0] == major):
                return True
    return False


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=ANSWER_S).stdout
