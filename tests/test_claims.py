"""Claims about prices: entered before their outcome, scored after it, and what they add up to."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bar_series import walk
from clocks import StandingClock
from commands import Run
from sqlalchemy import Engine

from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.price_claims import forecast_claims, price_outcome, signal_claim
from qubic_lab.oracle.config import OracleConfig
from qubic_lab.oracle.inference.track_record import (
    EVIDENCE,
    FamilyRecord,
    judged_claims,
    log_evidence,
    track_record,
)
from qubic_lab.oracle.model.bars import Bars
from qubic_lab.oracle.model.records import Price, Series
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, MINUTE_US, iso, now_us
from qubic_lab.oracle.risk.warning_scores import fall_outcome, warning_claim
from qubic_lab.oracle.serving.claim_update import GIVEN_UP_US, update_claims
from qubic_lab.oracle.store.chain import ledger_database
from qubic_lab.oracle.store.claims import Claim, ClaimLedger, ClaimOutcome, StoredClaim
from qubic_lab.oracle.store.price_store import PriceStore
from qubic_lab.oracle.store.snapshot import MarketStore

SERIES = Series("bitcoin", "exchange", 3_600)
CLAIM = Claim("bitcoin in 10", True, 100, 110, SERIES, 10, {"last": 50.0, "low": 49.0, "high": 52.0})


# --- Entering and scoring


def test_a_claim_is_entered_before_its_outcome_and_scored_after_it(engine: Engine) -> None:
    clock = StandingClock(99)
    ledger = ClaimLedger(engine, clock)
    with pytest.raises(InputError, match="enter it after that"):
        ledger.enter(CLAIM)
    clock.us = 101
    assert ledger.enter(CLAIM) == 1
    assert ledger.enter(CLAIM) is ledger.enter(replace(CLAIM, due_us=112)) is None  # the same is claimed already
    clock.us = 103
    assert ledger.enter(replace(CLAIM, said=False)) == 2
    with pytest.raises(InputError, match="score it after that"):
        ledger.score(1, ClaimOutcome(True))
    assert ledger.unscored() == []
    clock.us = 110
    with pytest.raises(InputError, match="its outcome may be known"):
        ledger.enter(CLAIM)
    assert [each.number for each in ledger.unscored(family=CLAIM.family)] == [1, 2]
    assert (ledger.score(1, ClaimOutcome(True, 51.0, True)), ledger.score(1, ClaimOutcome(False))) == (True, False)
    with pytest.raises(InputError, match="there is no claim 7"):
        ledger.score(7, ClaimOutcome(True))
    first, second = ledger.claims()
    assert (first.claim, first.entered_us, first.outcome) == (CLAIM, 101, ClaimOutcome(True, 51.0, True))
    assert (second.claim.said, second.entered_us, second.outcome) == (False, 103, None)
    assert ledger.claims(until_us=109)[0].outcome is None
    assert ledger.enter(replace(CLAIM, at_us=105, due_us=200)) == 4  # a due one does not stand


def test_a_clock_that_is_set_back_lets_nothing_in(engine: Engine) -> None:
    clock = StandingClock(120)
    ledger = ClaimLedger(engine, clock)
    ledger.enter(replace(CLAIM, family="other", due_us=130))
    clock.us = 105
    with pytest.raises(InputError, match="its outcome may be known"):
        ledger.enter(CLAIM)


def test_claims_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match="it must be made before"):
        replace(CLAIM, due_us=100)
    with pytest.raises(InputError, match="family of a claim is ''"):
        replace(CLAIM, family="")


# --- Evidence


def null_histories(kind: str, up: float, count: int, claims: int, seed: int) -> tuple[Any, Any]:
    """Claims without skill and their outcomes, [claims, histories] each: events come with one probability."""
    rng = np.random.default_rng((11, seed))
    came = rng.random((claims, count)) < up
    said = np.zeros_like(came)
    if kind == "random":
        said = rng.random(came.shape) < 0.3
    elif kind == "always":
        said[:] = True
    elif kind == "switch":  # from no to yes in the middle
        said[claims // 2 :] = True
    elif kind == "last":  # what came last time
        said[1:] = came[:-1]
    else:  # whatever has looked best so far
        wins = np.zeros(count)
        for row in range(claims):
            said[row] = wins > 0
            wins += np.where(came[row], 1.0, -1.0)
    return said, came


@pytest.mark.parametrize("up", [0.03, 0.5, 0.6])
@pytest.mark.parametrize("kind", ["random", "always", "switch", "last", "best"])
def test_claims_without_skill_reach_an_e_value_of_20_in_at_most_5_percent(kind: str, up: float) -> None:
    said, came = null_histories(kind, up, count=2_000, claims=400, seed=int(100 * up))
    ever = float((log_evidence(said, came).max(axis=0) >= np.log(EVIDENCE)).mean())
    assert ever <= 0.05


def test_skill_is_found_and_its_opposite_is_not() -> None:
    rng = np.random.default_rng(3)
    said = rng.random((600, 400)) < 0.5
    came = rng.random(said.shape) < np.where(said, 0.6, 0.4)
    ever = (log_evidence(said, came).max(axis=0) >= np.log(EVIDENCE)).mean()
    opposite = (log_evidence(~said, came).max(axis=0) >= np.log(EVIDENCE)).mean()
    assert ever > 0.75 and opposite == 0.0
    rare = rng.random((600, 400)) < 0.1  # warnings: a fall comes after 30 % of them, and else in 5 %
    falls = rng.random(rare.shape) < np.where(rare, 0.3, 0.05)
    assert (log_evidence(rare, falls)[-1] >= np.log(EVIDENCE)).mean() > 0.7


def test_a_bet_uses_earlier_outcomes_alone_and_one_history_is_judged_as_many_are() -> None:
    said, came = null_histories("random", 0.5, count=3, claims=50, seed=1)
    whole = log_evidence(said, came)
    np.testing.assert_allclose(log_evidence(said[:20], came[:20]), whole[:20])
    np.testing.assert_allclose(log_evidence(said[:, 1], came[:, 1]), whole[:, 1])
    assert log_evidence([], []).shape == (0,)
    # The first outcome: a bet of a half on an event, which the best probability in hindsight makes certain.
    assert log_evidence([True], [True])[0] == pytest.approx(np.log(0.5))


def stored(
    number: int, at: int, due: int, entered: int, outcome: ClaimOutcome | None, said: bool = True
) -> StoredClaim:
    return StoredClaim(number, replace(CLAIM, at_us=at, due_us=due, said=said), entered, outcome)


def test_what_counts_does_not_overlap_is_early_and_ends_at_a_due_claim_without_a_score() -> None:
    came, missed, unknown = ClaimOutcome(True, 51.0, True), ClaimOutcome(False, 53.0, False), ClaimOutcome(None)
    claims = [
        stored(1, 0, 10, 1, came),
        stored(2, 5, 15, 6, missed),  # overlaps
        stored(3, 10, 20, 16, missed),  # late
        stored(4, 12, 22, 13, missed, said=False),
        stored(5, 22, 32, 23, unknown),
        stored(6, 32, 42, 33, None),
        stored(7, 42, 52, 43, came),
    ]
    assert [each.number for each in judged_claims(claims)] == [1, 4]
    assert [each.number for each in judged_claims([*claims[:5], replace(claims[5], outcome=came), claims[6]])] == [
        *(1, 4, 6, 7)
    ]
    found = FamilyRecord.of("f", claims, at_us=45)
    assert (found.entered, found.waiting, found.scored, found.unknown, found.judged) == (7, 0, 6, 1, 2)
    assert (found.right, found.commoner, found.came_if_said, found.came_if_not) == (1.0, 0.5, 1.0, 0.0)
    assert (found.held, found.intervals, found.oldest_us) == (0.4, 5, 42)
    assert FamilyRecord.of("f", claims, at_us=41).waiting == 1
    assert found.row()[5:9] == ("2", "100 % (34 to 100)", "50 %", "100 %")
    nothing = FamilyRecord.of("f", claims[5:6], at_us=40)
    assert (nothing.e_value, nothing.right, nothing.row()[6]) == (1.0, None, "–")


# --- What is claimed, and what came of it


def test_forecasts_and_signals_claim_a_direction_and_their_outcome_is_the_close_at_that_time() -> None:
    bars = walk(1_000, seed=2)
    early = bars.slice(0, 900)
    claims = forecast_claims(early, SERIES, "1h")
    assert [each.family for each in claims] == [f"price of bitcoin in {hours} h, bars of 1h" for hours in (1, 2, 3, 4)]
    for hours, each in enumerate(claims, start=1):
        assert (each.at_us, each.due_us) == (early.closed_us[-1], early.closed_us[-1] + hours * HOUR_US)
        assert price_outcome(each, early) is None
        price, details = float(bars.close[899 + hours]), each.details
        held = details["low"] <= price <= details["high"]
        assert price_outcome(each, bars) == ClaimOutcome(price > bars.close[899], price, held)
        assert each.said == (details["price"] > bars.close[899])
    up, down = (signal_claim("f", early, weight, SERIES) for weight in (1.0, -0.5))
    assert up is not None and down is not None
    assert (up.said, down.said, up.due_us) == (True, False, bars.closed_us[900])
    assert price_outcome(up, bars) == ClaimOutcome(bool(bars.close[900] > bars.close[899]), float(bars.close[900]))
    assert signal_claim("f", early, 0.0, SERIES) is signal_claim("f", early, float("nan"), SERIES) is None
    without = Bars.of(np.delete(bars.closed_us, 900), np.delete(bars.close, 900), frame_us=HOUR_US)
    assert price_outcome(up, without) == ClaimOutcome(None)
    assert price_outcome(up, without.slice(0, 900)) is None


def test_a_warning_is_right_if_a_fall_begins_in_its_time() -> None:
    close = np.array([100.0] * 60 + [100.0] * 10 + [95.0] * 20)
    bars = Bars.of((1 + np.arange(90)) * HOUR_US, close, frame_us=HOUR_US)

    def came(made_at: int, until: int = 90) -> ClaimOutcome | None:
        claim = warning_claim(bars.slice(0, made_at), SERIES, "1h", True, 12 * HOUR_US, 0.04)
        return fall_outcome(claim, bars.slice(0, until))

    assert came(60) == ClaimOutcome(True)  # the 71st close is the first one below
    assert came(50) == ClaimOutcome(False)
    assert came(72) == ClaimOutcome(False)  # it is under way already
    assert came(60, until=71) is None  # its time is not over
    claim = warning_claim(bars.slice(0, 60), SERIES, "1h", True, 12 * HOUR_US, 0.04)
    gap = Bars.of(np.delete(bars.closed_us, slice(60, 70)), np.delete(close, slice(60, 70)), frame_us=HOUR_US)
    assert fall_outcome(claim, gap) == ClaimOutcome(None)
    assert claim.family == "fall of bitcoin by 4 % within 12 h, bars of 1h"


def stored_market(engine: Engine, clock: StandingClock, bars: Bars) -> MarketStore:
    prices = [
        Price(int(end) - HOUR_US, int(end), float(close), *[float(close)] * 3)
        for end, close in zip(bars.closed_us, bars.close, strict=True)
    ]
    PriceStore(engine, clock).add(SERIES, prices)
    return MarketStore(engine, clock)


def test_an_update_enters_what_is_said_and_scores_what_came(sqlite: Engine) -> None:
    bars, config = walk(1_200, seed=4), OracleConfig(coins=("bitcoin", "ethereum"))
    clock = StandingClock(int(bars.closed_us[999]) + 3 * MINUTE_US)
    market, ledger = stored_market(sqlite, clock, bars.slice(0, 1_000)), ClaimLedger(sqlite, clock)
    first = update_claims(market, ledger, config)
    families = {each.claim.family for each in ledger.claims()}
    assert first.entered == len(families) >= 5 and (first.scored, first.waiting) == (0, 0)
    assert update_claims(market, ledger, config).entered == 0
    clock.us += 30 * HOUR_US
    waits = update_claims(market, ledger, config)
    assert (waits.entered, waits.scored, waits.waiting) == (0, 0, first.entered)  # stale prices claim nothing
    market = stored_market(sqlite, clock, bars.slice(1_000, 1_030))
    done = update_claims(market, ledger, config)
    assert done.scored == first.entered and done.waiting == 0 and done.entered >= 5
    for each in ledger.claims():
        if each.outcome is not None and "last" in each.claim.details:
            price = float(bars.close[np.searchsorted(bars.closed_us, each.claim.due_us)])
            assert each.outcome.price == price and each.outcome.came == (price > each.claim.details["last"])
    clock.us += GIVEN_UP_US + DAY_US
    assert update_claims(market, ledger, config).scored == done.entered
    assert {each.outcome for each in ledger.claims()[-done.entered :]} == {ClaimOutcome(None)}
    record = track_record(sqlite, clock.us + MINUTE_US)  # stamps go on while the clock stands
    assert sum(each.entered for each in record.families) == first.entered + done.entered
    assert record.entries == 2 * (first.entered + done.entered) and record.trials == 0
    assert track_record(sqlite, 0).sentences()[0] == "Entries of the ledger: 0 (trials: 0, claims: 0)."


# --- The command


def write_hours(count: int = 900) -> None:
    """Write a file of hours that ends with the last full hour."""
    end_us = now_us() // HOUR_US * HOUR_US
    close = walk(count, seed=7).close
    rows = [f"{iso(end_us - (count - 1 - n) * HOUR_US)},{price:.4f}" for n, price in enumerate(close)]
    Path("hours.csv").write_text("\n".join(["time,close", *rows]) + "\n")


def test_the_command_updates_shows_and_verifies(oracle: Run, set_settings: Any, tmp_path: Path) -> None:
    set_settings(ledger_url=None)
    empty = oracle("ledger")
    assert empty.status == 0 and "0 (trials: 0, claims: 0)" in empty.out
    write_hours()
    assert oracle("import hours.csv --coin BTC --stamp close --interval 3600").status == 0
    done = oracle("ledger update")
    assert done.status == 0 and "claims entered, 0 scored" in done.err, done.err
    assert "| price of bitcoin in 4 h, bars of 1h " in done.out and "none has it" in done.out
    shown = oracle("ledger --json").json
    assert {each["scored"] for each in shown["families"]} == {0}
    assert (tmp_path / "cache" / "ledger.db").is_file()
    whole = oracle(f"ledger verify --head {shown['head']} --json").json
    assert whole == {"whole": True, "entries": shown["entries"], "hash": shown["head"]}
    assert f"the head is {shown['head']}" in oracle("ledger verify").out
    assert "no entry has the head 'abc'" in oracle("ledger verify --head abc").failed(1)
    assert "did you mean 'verify'" in oracle("ledger verfy").failed(2)
    assert "give it with verify" in oracle("ledger --head abc").failed(2)
    with ledger_database() as engine, engine.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER ledger_entries_update")
        content = json.dumps({"said": True})
        connection.exec_driver_sql("UPDATE ledger_entries SET content = ? WHERE number = 2", (content,))
    assert "the ledger is broken at entry 2: its hash" in oracle("ledger verify").failed(1)


def test_an_analysis_enters_what_it_claims(oracle: Run) -> None:
    write_hours()
    assert oracle("import hours.csv --coin BTC --stamp close --interval 3600").status == 0
    found = oracle("analyse --coin BTC --json").json
    assert found["ledger"]["entered"] >= 4 and found["ledger"]["scored"] == 0
    assert len(oracle("ledger --json").json["families"]) == found["ledger"]["entered"]
