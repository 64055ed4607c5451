"""The prices for the market's studies: your own file or the packaged ones, flagged, as bars of even lengths."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from qubic_lab.checked_yaml import check_content
from qubic_lab.errors import InputError
from qubic_lab.oracle.ingest.bar_files import BarFile, BarOptions, flagged_bars, read_bars
from qubic_lab.oracle.ingest.packaged import read_packaged
from qubic_lab.oracle.ingest.quality import completeness
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.known import known_text, read_known
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import HOUR_US, SECOND_US, iso, now_us

Row = dict[str, Any]
LEAST_BARS = 300
"""Fewer have no room for the longest signal and a walk forward."""
_END_US = 1 << 62


@dataclass(frozen=True)
class StudyBars:
    """Flagged bars of one length, `name` in words, and the file or packaged source that they are from.

    `missing` is the number of bars that are missing between; `notes` say what was left out of the file, or reordered,
    and what is assumed. Bars are known `delay_us` after their close.
    """

    coin: str
    source: str
    currency: str
    name: str
    frame_us: int
    bars: Bars
    missing: int
    notes: tuple[str, ...] = ()
    delay_us: int = 0

    @property
    def lag(self) -> int:
        """Bars from a decision to its fill: the decision needs the close, and the fill an open after it was known."""
        return 1 + math.ceil(self.delay_us / self.frame_us)

    @classmethod
    def of(cls, series: Series, source: str, bars: Bars, notes: Sequence[str] = (), delay_us: int = 0) -> "StudyBars":
        """Return the bars of a series, named by their length."""
        frame_us = bars.frame_us
        expected = int(bars.closed_us[-1] - bars.closed_us[0]) // frame_us + 1 if len(bars) else 0
        told = (series.coin, source, series.currency.upper(), _length(frame_us // SECOND_US))
        return cls(*told, frame_us, bars, expected - len(bars), tuple(notes), delay_us)

    @property
    def caveats(self) -> list[str]:
        """What a reader must know about the bars, a line each."""
        missing = [f"{self.name}: {self.missing} bars are missing"] if self.missing else []
        return missing + [f"{self.name}: {note}" for note in self.notes]

    def row(self) -> Row:
        """Return a description of the bars for a table."""
        return {
            "bars of": self.name,
            "source": self.source,
            "coin": self.coin,
            "from": iso(int(self.bars.opened_us[0])),
            "to": iso(int(self.bars.closed_us[-1])),
            "bars": len(self.bars),
            "missing": self.missing,
            "flagged": int((self.bars.flagged > 0).sum()),
        }


def load_bars(
    file: str = "", coin: str = "bitcoin", reading: Mapping[str, Any] | None = None, *, join: bool = True
) -> tuple[StudyBars, ...]:
    """Return the bars of a CSV file, or packaged ones of Bitcoin: of 15 minutes and of 1 day.

    `reading` has options of `BarOptions` that the file does not imply, such as {"stamp": "open"}. With `join`, bars
    shorter than 1 h become hours if they divide it; prices without bars always do. Others keep their own times: weeks
    begin on Mondays, and days at the file's midnight.

    Raises:
        InputError: a file that cannot be read, or with too few bars.
    """
    given = _read_files(file, coin, reading or {})
    found = [_bars_of(each, each.file if file else each.series.source, join) for each in given]
    if file:
        delay_us = read_known(str((reading or {}).get("known", "published"))) or 0
        told = f"prices of the file: {known_text(delay_us)}"
        found = [replace(each, notes=(*each.notes, told), delay_us=delay_us) for each in found]
    for bars in found:
        if len(bars.bars) < LEAST_BARS:
            raise InputError(
                f"{file or bars.source} has {len(bars.bars)} bars of {bars.name}: this study needs at least "
                f"{LEAST_BARS}; give a longer history or shorter bars"
            )
    return tuple(found)


def _read_files(file: str, coin: str, reading: Mapping[str, Any]) -> list[BarFile]:
    """Return your own file, or the packaged ones."""
    if not file:
        return [read_packaged(name, now_us()) for name in ("bitcoin-15min", "bitcoin-1day")]
    options = check_content(BarOptions, {**reading, "coin": coin}, "reading")
    return [read_bars(Path(file), options, now_us())]


def _bars_of(file: BarFile, source: str, join: bool) -> StudyBars:
    """Return the bars that a file makes: hours where it has quotes or is to be joined, else its own bars."""
    series, notes, (bars, _) = file.series, file.notes, flagged_bars(file)
    step_us = bars.frame_us
    if not step_us:
        return StudyBars.of(series, source, bars.resample(HOUR_US, _END_US, SECOND_US), notes)
    if not join or step_us >= HOUR_US or HOUR_US % step_us:
        return StudyBars.of(series, source, bars, notes)
    if (bars.opened_us % step_us).any():
        note = f"no hours were made of bars of {_length(series.interval_s)}: they do not begin with the hour"
        return StudyBars.of(series, source, bars, [*notes, note])
    hours, whole = bars.resample(HOUR_US, _END_US, step_us), HOUR_US // step_us
    if partial := int((hours.slots < whole).sum()):
        made = f"made of fewer than {whole} bars of {_length(series.interval_s)}"
        notes = (*notes, f"{partial} of {len(hours)} bars are {made}")
    return StudyBars.of(series, source, hours, notes)


@dataclass(frozen=True)
class MarketData:
    """Bars of one hour, and bars with volumes: those of days where the hours have none; with the data's quality."""

    coin: str
    source: str
    hours: Bars
    with_volume: Bars
    quality: tuple[Row, ...]


def load_market(file: str = "", coin: str = "bitcoin", reading: Mapping[str, Any] | None = None) -> MarketData:
    """Return the flagged bars of a file that make hours, or the packaged ones of Bitcoin, with their quality.

    The arguments are those of `load_bars`.
    """
    given = _read_files(file, coin, reading or {})
    found = [flagged_bars(each) for each in given]
    bars, series = [each for each, _ in found], given[0].series
    quality = tuple(_quality_row(each.series, *one) for each, one in zip(given, found, strict=True))
    if series.interval_s and 3_600 % series.interval_s:
        raise InputError(f"{file} has bars of {series.interval_s} s, which make no hours: give bars of 1 h or shorter")
    hours = bars[0].resample(HOUR_US, _END_US, max(1, series.interval_s) * SECOND_US)
    if len(hours) > 1 and np.median(np.diff(hours.closed_us)) > HOUR_US:
        raise InputError(f"most prices of {file} are more than 1 h apart: give bars of 1 h or shorter")
    return MarketData(series.coin, series.source, hours, bars[1] if len(bars) > 1 else hours, quality)


def _quality_row(series: Series, bars: Bars, flags: Mapping[str, int]) -> Row:
    found = completeness(bars.opened_us, bars.closed_us, series.interval_s * SECOND_US)
    return {
        "source": series.source,
        "bars of": _length(series.interval_s) if series.interval_s >= 86_400 else f"{series.interval_s / 60:g} min",
        "from": iso(int(bars.opened_us[0])),
        "to": iso(int(bars.closed_us[-1])),
        "prices": len(bars),
        "complete_pct": 100 * found.share,
        "gaps": found.gaps,
        "longest_gap_h": found.longest_gap_s / 3_600,
        "outliers": flags.get("outlier", 0),
        "repeated prices": flags.get("flat", 0),
        "corrected": 0,
    }


def _length(seconds: int) -> str:
    if seconds >= 86_400:
        return "1 day" if seconds == 86_400 else f"{seconds / 86_400:g} days"
    return f"{seconds / 3_600:g} h" if seconds >= 3_600 else f"{seconds / 60:g} min"
