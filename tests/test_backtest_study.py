"""The study of backtests: it finds what is planted, finds nothing in noise, and tells of files that cannot be used."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from bar_series import write_closes
from clocks import StandingClock
from headlines import told

from qubic_lab.bench.processes import DEVIATION, draw
from qubic_lab.database import open_database
from qubic_lab.errors import InputError
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.engine import Ruin
from qubic_lab.oracle.backtest.evaluate import Strategy
from qubic_lab.oracle.backtest.ledger import TrialLedger, open_ledger, verify
from qubic_lab.oracle.inference.multiple_testing import beyond, judge
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.oracle.store.claims import ClaimLedger, ClaimOutcome
from qubic_lab.studies import backtest_figures as figures
from qubic_lab.studies import backtest_findings
from qubic_lab.studies import oracle_backtest as study
from qubic_lab.studies.market_bars import StudyBars, load_bars
from qubic_lab.studies.oracle_backtest import Family, ScoredTexts

pytestmark = pytest.mark.usefixtures("quick_audits")
OPEN = {"stamp": "open"}
QUICK = {"draws": 3, "resamples": 200}


def walk(count: int, seed: int = 0) -> np.ndarray:
    return np.asarray(100.0 * np.exp(np.cumsum(np.random.default_rng(seed).normal(0.0, 0.02, count))))


def planted(bars: StudyBars, effect: float | None) -> ScoredTexts:
    """Simulated sentiment with an effect; None: none, so price signals are tried."""
    return study.PRICES_ALONE if effect is None else ScoredTexts.simulated(bars.bars, effect)


@pytest.fixture(scope="module")
def bars(tmp_path_factory: pytest.TempPathFactory) -> StudyBars:
    return load_bars(write_closes(tmp_path_factory.mktemp("bars") / "walk.csv", walk(500)), "bitcoin", OPEN)[0]


@pytest.fixture(scope="module")
def ledger() -> Iterator[TrialLedger]:
    with open_ledger("sqlite://") as opened:
        yield opened


@pytest.fixture(scope="module")
def families(bars: StudyBars, ledger: TrialLedger) -> list[Family]:
    return [
        study.study_family(bars, ledger, Costs(5.0), scored=planted(bars, effect), **QUICK)
        for effect in (None, 0.0, 0.4)
    ]


def test_what_is_planted_is_found_and_noise_is_not(families: list[Family]) -> None:
    price, nothing, planted = families
    assert not price.evidence and not nothing.evidence
    assert planted.evidence and planted.verdict.sharpe is not None and planted.verdict.sharpe > 3.0
    assert [each.recorded for each in families] == [16, 4, 4]
    assert price.best.baselines.random_returns.shape == (3,)
    assert sorted(planted.best.lags) == [1, 2, 3, 5, 8]
    late = planted.best.lags[3].net_returns
    assert np.sqrt(365.0) * late.mean() / late.std(ddof=1) < planted.verdict.sharpe / 2


def test_simulated_sentiment_says_so_everywhere(families: list[Family]) -> None:
    price, nothing, planted = families
    headline, *said = told(backtest_findings.findings(families), "prediction")
    assert headline == "None of 1 set of price signals beat luck after costs; texts were not tested."
    assert said[1].startswith("SIMULATION: ") and said[2].startswith("SIMULATION: ")
    assert "SIMULATION" not in said[0]
    assert said[3] == "The predictive value of real sentiment is not measured here: no collected texts."
    assert figures.lags_and_costs([nothing, planted]).axes[0].get_title(loc="left").startswith("SIMULATION")
    assert not figures.lags_and_costs([price]).axes[0].get_title(loc="left")
    assert study.to_dict(planted)["simulation"] and not study.to_dict(price)["simulation"]


def test_a_planted_effect_is_a_correlation_with_the_return_after_the_next_open(bars: StudyBars) -> None:
    market = bars.bars
    ahead = np.diff(np.log(market.open[1:]))
    for effect in (0.0, 0.5, -0.5):
        scores = np.array([text.scores["simulated"] for text in study.simulated_texts(market, effect)])[: len(ahead)]
        assert np.corrcoef(scores, ahead)[0, 1] == pytest.approx(effect, abs=0.12)
    with pytest.raises(InputError, match="effect is 2"):
        study.simulated_texts(market, 2.0)


def test_trials_are_counted_once_and_earlier_ones_count(tmp_path: Path, bars: StudyBars) -> None:
    url = f"sqlite:///{tmp_path}/trials.db"
    with open_ledger(url) as opened:
        first = study.study_family(bars, opened, Costs(5.0), scored=planted(bars, 0.4), **QUICK)
    with open_ledger(url) as opened:
        again = study.study_family(bars, opened, Costs(5.0), scored=planted(bars, 0.4), **QUICK)
        dearer = study.study_family(bars, opened, Costs(50.0), scored=planted(bars, 0.4), **QUICK)
    assert (first.recorded, again.recorded, dearer.recorded) == (4, 4, 8)
    assert again.verdict == first.verdict
    assert [row["new"] for row in study.trial_rows([again])] == [False] * 4
    assert dearer.verdict.trials == 8


@pytest.mark.parametrize("strategy", study.price_strategies(), ids=lambda each: f"{each.title}{each.parameters}")
def test_price_signals_do_not_look_ahead(strategy: Strategy, bars: StudyBars) -> None:
    frame = bars.bars.frame()
    whole = np.asarray(strategy.function(frame, **strategy.parameters))
    assert set(np.unique(whole)) <= {-1.0, 0.0, 1.0} and len(np.unique(whole)) > 1
    for until in (150, 333, 499):
        part = np.asarray(strategy.function(frame.iloc[:until], **strategy.parameters))
        np.testing.assert_array_equal(part, whole[:until])


def test_what_holding_explains_is_taken_off() -> None:
    hold = np.random.default_rng(0).normal(0.001, 0.02, 400)
    own = np.random.default_rng(1).normal(0.002, 0.01, 400)
    own -= ((hold - hold.mean()) @ own) / ((hold - hold.mean()) @ (hold - hold.mean())) * (hold - hold.mean())
    left = beyond(np.stack([2.0 * hold, own + hold], axis=1), hold)
    assert not left[:, 0].any()
    np.testing.assert_allclose(left[:, 1], own, atol=1e-15)
    np.testing.assert_array_equal(beyond(own[:, None], np.zeros(400))[:, 0], own)


def test_signals_that_are_long_in_a_rising_market_foretell_nothing() -> None:
    lured = fooled = 0
    for number in range(24):
        returns, signals = draw("gaussian", (9, number), bars=500, signals=8)
        rising = returns + 3.0 * DEVIATION / np.sqrt(365.0)
        trials = np.zeros_like(signals)
        trials[1:] = np.where(signals[:-1] > 0.0, 1.0, -0.1) * rising[1:, None]
        best = int(np.argmax(trials.mean(axis=0) / trials.std(axis=0)))
        options = {"resamples": 200, "parts": None, "seed": number}
        lured += judge(trials, best, 365.0, **options).evidence  # type: ignore[arg-type]
        fooled += judge(beyond(trials, rising), best, 365.0, **options).evidence  # type: ignore[arg-type]
    assert lured >= 12
    assert fooled <= 4


def test_luck_that_holding_explains_is_no_prediction(families: list[Family]) -> None:
    planted = families[2]
    swum = replace(planted, timing=replace(planted.timing, evidence=False, p=0.3))
    assert not swum.evidence
    swum_told, planted_told, _ = map(str, backtest_findings.findings([swum, planted]))
    assert "but not beyond what holding explains (p = 0.3)" in swum_told
    assert "is evidence" in planted_told and "beyond what holding explains, p " in planted_told


def test_accounts_add_up_and_the_walk_forward_trades_only_where_it_was_tested(families: list[Family]) -> None:
    assert study.worst_gap(families) < 1e-12
    made = families[0].tried[0]
    wrong = replace(made, account=replace(made.account, equity=made.account.equity * 1.001))
    assert study.worst_gap([replace(families[0], tried=(wrong,))]) > 1e-6
    price = families[0]
    assert price.folds == 6
    assert not price.forward.units[: 500 // 3].any()
    assert price.forward.units[200:].any()


def test_tables_show_all_and_dearer_trades_leave_less(families: list[Family]) -> None:
    names = [row["account"] for row in study.account_rows(families[0])]
    assert {"hold", "cash", "sign flipped", "walk forward"} <= set(names) and len(names) == 7
    assert len(study.trial_rows(families)) == 24
    fees = [ratio for _, ratio in study.fee_sweep(families[2])]
    assert fees == sorted(fees, reverse=True) and len(fees) == len(study.FEES_BPS)


def test_an_account_that_lost_all_is_named_and_pictures_say_where_they_end(
    bars: StudyBars, families: list[Family]
) -> None:
    family = families[0]
    ruined = replace(family.forward, ruin=Ruin(bar=300, at="close", equity=-5.0))
    said = study.notes([replace(family, forward=ruined)])
    assert "price signals, 1 day, walk forward: the account ended at the close of" in " ".join(said)
    lost = replace(family.forward, equity=np.linspace(1.0, -0.2, len(bars.bars)) * family.forward.initial_cash)
    baselines = replace(family.best.baselines, random_returns=np.full(3, -1.01))
    best = replace(family.best, baselines=baselines)
    top = figures.equity(replace(family, forward=lost, best=best)).axes[0]
    assert top.get_ylabel() == "equity (start = 1)\nnot shown below 0.05"
    assert "90 % of random timings end below 0.05" in top.get_legend_handles_labels()[1]


def test_a_constant_price_makes_no_trades_and_a_report_that_says_so(tmp_path: Path, ledger: TrialLedger) -> None:
    flat = load_bars(write_closes(tmp_path / "flat.csv", np.full(320, 100.0)), "bitcoin", OPEN)[0]
    family = study.study_family(flat, ledger, Costs(5.0), **QUICK)
    said = " ".join(map(str, [*backtest_findings.findings([family]), *study.notes([family])]))
    assert "no evidence: the chosen one of 16 trials never trades" in said
    assert "no trades" in said and "constant price of bitcoin" in said
    figures.equity(family)
    figures.lags_and_costs([family])
    row = study.verdict_rows([family])[0]
    assert (row["sharpe"], row["evidence"], row["pbo"]) == (None, False, None)
    assert study.worst_gap([family]) == 0.0


def test_files_that_cannot_be_used_get_one_clear_line(tmp_path: Path) -> None:
    few = write_closes(tmp_path / "few.csv", walk(40))
    wrong = write_closes(tmp_path / "wrong.csv", walk(400), header="date,alpha,beta,gamma,delta")
    hours = write_closes(tmp_path / "hours.csv", walk(400), step_us=DAY_US // 24)
    for file, reading, said in (
        (few, OPEN, "has 40 bars of 1 day: this study needs at least 300; give a longer history"),
        (wrong, OPEN, "names no columns that are known"),
        (hours, {}, "give `stamp`, open or close"),
        (few, {"stmp": "open"}, "stamp"),
        (few, {"zone": 0}, "zone is 0: it must be a text"),
        (str(tmp_path / "missing.csv"), OPEN, "missing.csv"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            load_bars(file, "bitcoin", reading)
        assert "\n" not in str(caught.value)


def test_gaps_stay_and_are_told(tmp_path: Path, ledger: TrialLedger) -> None:
    path = Path(write_closes(tmp_path / "gaps.csv", walk(420)))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:150], *lines[200:], *lines[170:200]]) + "\n")  # one block is out of order
    found = load_bars(str(path), "bitcoin", OPEN)[0]
    assert (len(found.bars), found.missing, found.row()["missing"]) == (400, 20, 20)
    family = study.study_family(found, ledger, Costs(), scored=planted(found, 0.0), **QUICK)
    assert {"1 day: 20 bars are missing", "1 day: rows were out of order: sorted"} <= set(study.notes([family]))


def test_short_bars_become_hours_only_where_asked_and_missing_ones_are_told(tmp_path: Path) -> None:
    path = Path(write_closes(tmp_path / "quarters.csv", walk(1_300), step_us=DAY_US // 96))

    def load() -> tuple[StudyBars, StudyBars]:
        hours, quarters = (load_bars(str(path), "bitcoin", OPEN, join=join)[0] for join in (True, False))
        return hours, quarters

    assert [(each.name, len(each.bars)) for each in load()] == [("1 h", 325), ("15 min", 1_300)]
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:101], *lines[103:200], *lines[201:]]) + "\n")
    hours, quarters = load()
    known = "prices of the file: known when published (assumed)"
    assert hours.caveats == ["1 h: 2 of 325 bars are made of fewer than 4 bars of 15 min", f"1 h: {known}"]
    assert quarters.caveats == ["15 min: 3 bars are missing", f"15 min: {known}"]


@pytest.mark.parametrize(
    ("step_us", "first_us", "name"),
    [
        (7 * DAY_US, 16_902 * DAY_US, "7 days"),  # a Monday
        (DAY_US, 19_000 * DAY_US + 5 * HOUR_US, "1 day"),  # midnight in New York
        (HOUR_US, 19_000 * DAY_US + HOUR_US // 2, "1 h"),
        (HOUR_US // 4, 19_000 * DAY_US + HOUR_US // 9, "15 min"),
    ],
)
def test_bars_keep_their_own_times(tmp_path: Path, step_us: int, first_us: int, name: str) -> None:
    count = 320
    file = write_closes(tmp_path / "bars.csv", walk(count), step_us, first_us=first_us)
    found = load_bars(file, "bitcoin", OPEN)[0]
    assert (found.name, len(found.bars), found.missing) == (name, count, 0)
    assert found.bars.opened_us.tolist() == [first_us + number * step_us for number in range(count)]
    assert (found.bars.closed_us - found.bars.opened_us == step_us).all()
    assert ("15 min: no hours were made of bars of 15 min" in " ".join(found.caveats)) == (name == "15 min")


def test_a_weeks_verdict_is_on_its_own_bars_and_corrected_for_what_was_tried_before(tmp_path: Path) -> None:
    close, file = walk(340, seed=5), tmp_path / "week.csv"
    weeks = [load_bars(write_closes(file, close[:count]), "bitcoin", OPEN)[0] for count in (320, 327)]
    moved = load_bars(write_closes(file, close[20:334], first_us=19_020 * DAY_US), "bitcoin", OPEN)[0]
    with open_ledger("sqlite://") as opened:
        first = study.study_family(weeks[0], opened, Costs(5.0), **QUICK)
        dearer = study.study_family(weeks[0], opened, Costs(50.0), **QUICK)
        later = study.study_family(weeks[1], opened, Costs(5.0), **QUICK)
        last = study.study_family(moved, opened, Costs(5.0), **QUICK)
        assert verify(opened.engine).entries == 4 * 16
    assert [each.recorded for each in (first, dearer, later, last)] == [16, 32, 32, 32]
    assert later.verdict.years == pytest.approx(327 / 365) and last.verdict.years == pytest.approx(314 / 365)
    with open_ledger("sqlite://") as alone:
        assert study.study_family(weeks[1], alone, Costs(5.0), **QUICK).verdict.p <= later.verdict.p


def test_the_best_signal_claims_the_next_bar_and_the_next_run_scores_it(tmp_path: Path) -> None:
    close = walk(340, seed=5)
    weeks = [load_bars(write_closes(tmp_path / "bars.csv", close[:count]), "bitcoin", OPEN)[0] for count in (320, 327)]
    clock = StandingClock(int(weeks[0].bars.closed_us[-1]) + HOUR_US)
    engine = open_database(f"sqlite:///{tmp_path}/claims.db")
    opened = TrialLedger(engine, clock)
    family = study.study_family(weeks[0], opened, Costs(5.0), **QUICK)
    study.study_family(weeks[0], opened, Costs(5.0), scored=planted(weeks[0], 0.4), **QUICK)
    (claim,) = ClaimLedger(engine, clock).claims()  # a simulation claims nothing
    assert claim.claim.family == f"price signals: bitcoin of {weeks[0].source}, 1 day"
    assert claim.claim.said == (family.best.targets[-1, 0] > 0.0)
    clock.us += 30 * DAY_US
    study.study_family(weeks[1], opened, Costs(5.0), **QUICK)
    (claim,) = ClaimLedger(engine, clock).claims()  # old bars claim nothing
    assert claim.outcome == ClaimOutcome(bool(close[320] > close[319]), pytest.approx(close[320], abs=1e-6))
    engine.dispose()
