"""What we said and what came: the claims of the ledger by family, and the evidence of skill that they add up to."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from sqlalchemy import Engine

from qubic_lab.oracle.model.bars import Flags, Floats
from qubic_lab.oracle.model.timestamps import iso
from qubic_lab.oracle.store.chain import count_entries, read_head
from qubic_lab.oracle.store.claims import ClaimLedger, StoredClaim
from qubic_lab.stats import wilson_interval

EVIDENCE = 20.0
"""The e-value that a family without skill ever reaches with a probability of at most 1 / 20."""
PRIOR = 30.0
"""Claims that the common rate counts for in the bet on a claim."""
HEADER = (
    *("family", "entered", "not due", "scored", "not known", "judged", "right (95 %)", "the commoner outcome"),
    *("came, if claimed", "came, if not", "within interval", "e-value", "oldest unscored"),
)


def log_evidence(said: ArrayLike, came: ArrayLike) -> Floats:
    """Return the logarithm of the e-value after each claim, [claims] or [claims, histories].

    The null hypothesis of no skill: the event comes with one unknown probability, whatever is said and whatever came
    before. Then the e-value ever reaches x with a probability of at most 1 / x, so it may be looked at any time. It is
    the likelihood of bets that are made before each outcome, over the greatest likelihood that any such probability
    gives to all outcomes. The bet is the share of earlier claims of the same kind (said or not) whose event came, drawn
    towards the share of all by `PRIOR`, and never on the wrong side of that: claims that are mostly wrong earn nothing.

    Source: universal inference with a running estimate, L. Wasserman, A. Ramdas and S. Balakrishnan, PNAS 117 (2020),
    16880-16890, section 8.
    """
    claimed, happened = np.asarray(said, np.bool_), np.asarray(came, np.bool_)
    counts = np.zeros((2, 2, *claimed.shape[1:]))  # by said and came
    found, gained = np.empty(claimed.shape), np.zeros(claimed.shape[1:])
    for row, (yes, event) in enumerate(zip(claimed, happened, strict=True)):
        own = np.where(yes, counts[1], counts[0])
        total, came_total = counts.sum(axis=(0, 1)), counts[:, 1].sum(axis=0)
        common = (came_total + 0.5) / (total + 1.0)
        bet = (own[1] + PRIOR * common) / (own.sum(axis=0) + PRIOR)
        bet = np.where(yes, np.maximum(bet, common), np.minimum(bet, common))
        gained = gained + np.log(np.where(event, bet, 1.0 - bet))
        for kind in (0, 1):
            counts[kind, 1] += (yes == kind) & event
            counts[kind, 0] += (yes == kind) & ~event
        total, came_total = total + 1.0, came_total + event
        missed = total - came_total
        best = came_total * np.log(np.maximum(came_total, 1.0) / total)
        found[row] = gained - best - missed * np.log(np.maximum(missed, 1.0) / total)
    return found


def judged_claims(claims: Sequence[StoredClaim]) -> list[StoredClaim]:
    """Return the claims of a family that count as evidence, in order; what counts never depends on an outcome.

    Each was entered in the first half of its time, and made when the one before was due, so that a bet on it is made
    before its outcome and after those of all bets before. A due claim without a score ends the list: nothing after it
    counts until it is scored. Claims whose outcome cannot be known are passed over.
    """
    kept, free_us = [], 0
    for each in claims:
        claim = each.claim
        if claim.at_us < free_us or 2 * (each.entered_us - claim.at_us) > claim.due_us - claim.at_us:
            continue
        if each.outcome is None:
            break
        free_us = claim.due_us
        if each.outcome.came is not None:
            kept.append(each)
    return kept


@dataclass(frozen=True)
class FamilyRecord:
    """The claims of a family; None where there is nothing to count.

    Attributes:
        unknown: scored claims whose outcome cannot be known.
        judged: claims that do not overlap (see `judged_claims`). The following are shares of them:
        right: whose event came if it was said, and did not if not, with its 95 % Wilson interval (`low`, `high`).
        commoner: of the more common outcome, which always saying the same would get with hindsight.
        came_if_said, came_if_not: whose event came, of those that said so, and of the others.
        held: of all claims with an interval, the share of prices within it; `intervals` is their number.
        e_value: evidence of skill; see `log_evidence`.
        oldest_us: when the oldest due claim without a score was due.
    """

    family: str
    entered: int
    waiting: int
    scored: int
    unknown: int
    judged: int
    right: float | None
    low: float | None
    high: float | None
    commoner: float | None
    came_if_said: float | None
    came_if_not: float | None
    held: float | None
    intervals: int
    e_value: float
    oldest_us: int | None

    @classmethod
    def of(cls, family: str, claims: Sequence[StoredClaim], at_us: int) -> "FamilyRecord":
        """Return the record of a family's claims, in order, as it stands at an instant."""
        outcomes = [each.outcome for each in claims if each.outcome is not None]
        judged = judged_claims(claims)
        said = np.array([each.claim.said for each in judged], np.bool_)
        came = np.array([bool(each.outcome and each.outcome.came) for each in judged], np.bool_)
        right, count = int((said == came).sum()), len(judged)
        low, high = wilson_interval(right, count) if count else (None, None)
        held = np.array([each.held for each in outcomes if each.held is not None], np.bool_)
        due = [each.claim.due_us for each in claims if each.outcome is None and each.claim.due_us <= at_us]
        return cls(
            family=family,
            entered=len(claims),
            waiting=len(claims) - len(outcomes) - len(due),
            scored=len(outcomes),
            unknown=sum(each.came is None for each in outcomes),
            judged=count,
            right=_share(said == came),
            low=low,
            high=high,
            commoner=max(float(came.mean()), 1.0 - float(came.mean())) if count else None,
            came_if_said=_share(came[said]),
            came_if_not=_share(came[~said]),
            held=_share(held),
            intervals=len(held),
            e_value=float(np.exp(min(700.0, log_evidence(said, came)[-1]))) if count else 1.0,
            oldest_us=min(due, default=None),
        )

    def row(self) -> tuple[str, ...]:
        """Return it as a row of a table under `HEADER`."""
        interval = "" if self.low is None or self.high is None else f" ({100 * self.low:.0f} to {100 * self.high:.0f})"
        return (
            *(self.family, str(self.entered), str(self.waiting), str(self.scored), str(self.unknown)),
            *(str(self.judged), f"{_per_cent(self.right)}{interval}", _per_cent(self.commoner)),
            *(_per_cent(self.came_if_said), _per_cent(self.came_if_not)),
            f"{_per_cent(self.held)} of {self.intervals}" if self.intervals else "–",
            *(f"{self.e_value:.3g}", "–" if self.oldest_us is None else iso(self.oldest_us)),
        )


@dataclass(frozen=True)
class ClaimRecord:
    """The ledger at an instant: its entries, the hash of the newest one (`head`), its trials, and its claims."""

    at_us: int
    entries: int
    head: str
    trials: int
    families: tuple[FamilyRecord, ...]

    def sentences(self) -> list[str]:
        """Say what the claims amount to, and what binds them."""
        claims, due = sum(each.entered for each in self.families), [f for f in self.families if f.oldest_us is not None]
        said = [f"Entries of the ledger: {self.entries} (trials: {self.trials}, claims: {claims})."]
        if self.families:
            needed = EVIDENCE * len(self.families)
            shown = [each.family for each in self.families if each.e_value >= needed]
            said.append(
                f"Evidence of skill needs an e-value of {needed:g} ({EVIDENCE:g} for each of {len(self.families)} "
                f"families): {'; '.join(shown) if shown else 'none has it'}."
            )
        if due:
            oldest = min(due, key=lambda each: each.oldest_us or 0)
            said.append(
                f"Families with claims that are due and not scored: {len(due)}; the oldest is of {oldest.family}."
            )
        return [*said, f"Its head is {self.head}: whoever keeps it can see whether an entry up to now was changed."]


def track_record(engine: Engine, at_us: int) -> ClaimRecord:
    """Return what the ledger of a database held at an instant."""
    by_family: dict[str, list[StoredClaim]] = defaultdict(list)
    for each in ClaimLedger(engine).claims(until_us=at_us):
        by_family[each.claim.family].append(each)
    with engine.connect() as connection:
        head, trials = read_head(connection, at_us), count_entries(connection, "trial", at_us)
    families = tuple(FamilyRecord.of(name, claims, at_us) for name, claims in sorted(by_family.items()))
    return ClaimRecord(at_us, head.entries, head.hash, trials, families)


def _share(happened: Flags) -> float | None:
    return float(happened.mean()) if len(happened) else None


def _per_cent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"
