"""Quotas, on SQLite and PostgreSQL.

They are counted before a request is sent, by all processes together, and spread over what is left of a period.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine

from qubic_lab.oracle.ingest.http_rules import NO_LIMIT, QuotaError, Quotas, bounds, spread
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, SECOND_US, to_us


def at(month: int, day: int, hour: int = 0, minute: int = 0) -> int:
    return to_us(datetime(2026, month, day, hour, minute, tzinfo=UTC))


NOON = at(11, 24, 12)


def used(quotas: Quotas, limits: dict[str, int], source: str = "x") -> dict[str, int]:
    return {use.period: use.used for use in quotas.report({source: limits})}


def test_periods_are_of_utc() -> None:
    assert bounds("month", NOON) == (at(11, 1), at(12, 1))
    assert bounds("month", at(12, 31, 23, 59)) == (at(12, 1), to_us(datetime(2027, 1, 1, tzinfo=UTC)))
    assert bounds("day", NOON) == (at(11, 24), at(11, 25))
    assert bounds("half-day", NOON) == (NOON, at(11, 25))
    assert bounds("half-day", NOON - 1) == (at(11, 24), NOON)


def test_what_is_used_up_is_not_counted_on_and_comes_back_with_the_next_period(engine: Engine) -> None:
    now = [NOON]
    quotas = Quotas(engine, lambda: now[0])
    limits = {"day": 3, "month": 10}
    for _ in range(3):
        quotas.use("x", limits)
    with pytest.raises(QuotaError, match="3 requests a day is used up: more from 2026-11-25T00:00:00Z") as caught:
        quotas.use("x", limits)
    assert caught.value.retry_after_s == 12 * 3600.0
    assert used(quotas, limits) == {"half-day": 3, "day": 3, "month": 3}
    quotas.use("y", {})  # of its own, and counted without a quota
    assert used(quotas, {}, "y")["day"] == 1
    now[0] += 12 * HOUR_US
    quotas.use("x", limits, cost=3)
    assert used(quotas, limits) == {"half-day": 3, "day": 3, "month": 6}


def test_a_request_that_one_period_has_no_room_for_counts_in_none(engine: Engine) -> None:
    quotas = Quotas(engine, lambda: NOON)
    limits = {"half-day": 100, "day": 100, "month": 4}
    quotas.use("x", limits, cost=3)
    with pytest.raises(QuotaError, match="a month is used up"):
        quotas.use("x", limits, cost=2)
    with pytest.raises(QuotaError):
        quotas.use("new", {"day": 1}, cost=2)
    assert used(quotas, limits) == {"half-day": 3, "day": 3, "month": 3}
    assert used(quotas, limits, "new") == {"half-day": 0, "day": 0, "month": 0}


def test_many_at_once_never_use_more_than_there_is(engine: Engine) -> None:
    granted: list[int] = []

    def spend() -> None:
        quotas = Quotas(engine, lambda: NOON)
        for _ in range(8):
            try:
                quotas.use("x", {"day": 20})
            except QuotaError:
                continue
            granted.append(1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: spend(), range(4)))
    assert len(granted) == 20
    assert used(Quotas(engine, lambda: NOON), {"day": 20})["day"] == 20


def test_five_minutes_last_a_month_of_coingecko_and_an_hour_lasts_a_day_of_newsapi(engine: Engine) -> None:
    quotas = Quotas(engine, lambda: at(11, 1))
    assert quotas.plan("coingecko", {"month": 10_000}, 300.0) == 300.0
    assert quotas.spare("coingecko", {"month": 10_000}, 300.0) == 10_000 - 30 * 288 - 1
    newsapi = {"half-day": 50, "day": 100}
    assert quotas.plan("newsapi", newsapi, 3600.0, cost=4) == 3600.0
    assert quotas.plan("newsapi", newsapi, 3600.0, cost=5) == 4320.0  # ten polls in 12 hours
    assert quotas.spare("free", {}, 60.0) == NO_LIMIT


def test_with_much_used_early_the_rest_is_spread_over_the_period(engine: Engine) -> None:
    quotas = Quotas(engine, lambda: at(11, 16))
    quotas.use("x", {"month": 10_000}, cost=8_560)
    assert quotas.plan("x", {"month": 10_000}, 300.0) == 15 * 86_400 / 1_440
    assert quotas.spare("x", {"month": 10_000}, 300.0) == 0
    quotas.use("x", {"month": 10_000}, cost=1_440)
    assert quotas.plan("x", {"month": 10_000}, 300.0) == 15 * 86_400.0


@given(st.integers(0, 2000), st.integers(0, 31 * 86_400), st.floats(1.0, 86_400.0), st.integers(1, 8))
def test_what_is_left_lasts(left: int, remaining_s: int, wanted_s: float, cost: int) -> None:
    """Polling from now until the end at the period that is given uses no more than what is left."""
    period_s = spread(left, NOON + remaining_s * SECOND_US, NOON, wanted_s, cost)
    assert period_s >= wanted_s
    if left >= cost and remaining_s:
        assert remaining_s / period_s * cost <= left * (1 + 1e-9)
    else:
        assert period_s >= min(remaining_s, DAY_US)
