"""Claims about later prices: entered in the ledger before their outcome, scored once it is known, and never changed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sqlalchemy import Engine

from qubic_lab.errors import InputError
from qubic_lab.oracle.model.records import Series
from qubic_lab.oracle.model.timestamps import iso, now_us
from qubic_lab.oracle.store.chain import append, read_entries
from qubic_lab.oracle.store.transactions import NEWEST, Clock, writing

MOST_FAMILY = 128


@dataclass(frozen=True)
class Claim:
    """Whether an event comes between the close of a bar (`at_us`) and a later instant (`due_us`).

    Attributes:
        family: claims of one kind about one thing, such as the price of a coin in 4 hours; they are judged together.
        said: whether the event is expected.
        series: the prices that decide; `frame_us` is the length of the bars that are made of them.
        details: what else was said, and what decides: plain numbers and texts.
    """

    family: str
    said: bool
    at_us: int
    due_us: int
    series: Series
    frame_us: int
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < len(self.family) <= MOST_FAMILY:
            raise InputError(f"family of a claim is {self.family!r:.60}: give 1 to {MOST_FAMILY} characters")
        if self.due_us <= self.at_us:
            raise InputError(f"claim about {iso(self.due_us)} is made at {iso(self.at_us)}: it must be made before")


@dataclass(frozen=True)
class ClaimOutcome:
    """Whether the event of a claim came; None: it cannot be known, as prices are missing.

    `price` decided; `held`: whether it was within the stated interval. None where there is none.
    """

    came: bool | None
    price: float | None = None
    held: bool | None = None


@dataclass(frozen=True)
class StoredClaim:
    """A claim with its number in the ledger, when it was entered, and its outcome, if it has been scored."""

    number: int
    claim: Claim
    entered_us: int
    outcome: ClaimOutcome | None = None


class ClaimLedger:
    """The claims of a ledger's database; threads and processes may share it.

    `clock` gives the time in microseconds. Each entry's time is that of its transaction, which never goes back.
    """

    def __init__(self, engine: Engine, clock: Clock = now_us) -> None:
        self._engine, self._clock = engine, clock

    def enter(self, claim: Claim) -> int | None:
        """Enter a claim and return its number; None: the same is claimed of its family already, and not yet due.

        Raises:
            InputError: its outcome may be known already, or the bar that it is made from has not closed.
        """
        with writing(self._engine, self._clock) as writer:
            if writer.known_us >= claim.due_us:
                raise InputError(
                    f"claim about {iso(claim.due_us)} comes at {iso(writer.known_us)}: its outcome may be known; enter "
                    "claims before"
                )
            if writer.known_us < claim.at_us:
                raise InputError(f"claim is made from a bar that closes at {iso(claim.at_us)}: enter it after that")
            standing = [
                each
                for entry in read_entries(writer.connection, "claim", family=claim.family)
                if (each := _claim(entry.family, entry.content)).due_us > writer.known_us
            ]
            if standing and standing[-1].said == claim.said:
                return None
            content = asdict(claim)
            return append(writer, "claim", content.pop("family"), content)

    def score(self, number: int, outcome: ClaimOutcome) -> bool:
        """Enter the outcome of a claim, and return whether it is new: a score is never changed.

        Raises:
            InputError: there is no such claim, or it is not due yet.
        """
        with writing(self._engine, self._clock) as writer:
            found = read_entries(writer.connection, "claim", number=number)
            if not found:
                raise InputError(f"there is no claim {number} in the ledger: give the number of one that was entered")
            claim = _claim(found[0].family, found[0].content)
            if writer.known_us < claim.due_us:
                raise InputError(f"claim {number} is about {iso(claim.due_us)}: score it after that")
            if read_entries(writer.connection, "score", about=number):
                return False
            append(writer, "score", claim.family, asdict(outcome), about=number)
            return True

    def claims(self, family: str = "", until_us: int = NEWEST) -> list[StoredClaim]:
        """Return the claims of a family, or all, in order; with what was entered and scored up to an instant."""
        equal = {"family": family} if family else {}
        with self._engine.connect() as connection:
            entries = read_entries(connection, "claim", "score", until_us=until_us, **equal)
        outcomes = {entry.about: ClaimOutcome(**entry.content) for entry in entries if entry.kind == "score"}
        return [
            StoredClaim(
                entry.number, _claim(entry.family, entry.content), entry.recorded_us, outcomes.get(entry.number)
            )
            for entry in entries
            if entry.kind == "claim"
        ]

    def unscored(self, family: str = "") -> list[StoredClaim]:
        """Return the claims of a family, or all, that are due and have no score."""
        now = self._clock()
        return [each for each in self.claims(family) if each.outcome is None and each.claim.due_us <= now]


def _claim(family: str, content: Mapping[str, Any]) -> Claim:
    return Claim(family, **{**content, "series": Series(**content["series"])})
