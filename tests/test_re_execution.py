"""Each study's results that are no times are equal bit for bit when they are executed again, one by one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qubic_lab.bench.balance import bench_balance
from qubic_lab.errors import InputError
from qubic_lab.evals.compare import compare
from qubic_lab.evals.comparison_plan import ComparisonConfig
from qubic_lab.evals.consensus_eval import ConsensusPlan, ask_model, evaluate_answers, save_answers
from qubic_lab.evals.recording import Asking
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.ledger import open_ledger
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US, iso
from qubic_lab.studies import collected_signals, oracle_backtest, oracle_measures, risk_warnings, signal_studies
from qubic_lab.studies.market_bars import load_bars, load_market
from qubic_lab.studies.oracle_results import AnomaliesRecord
from qubic_lab.studies.re_execution import Recorded, findings_again, items_of, plain, re_execute


def again(run: Recorded) -> dict[str, Any]:
    """All items of a run, executed again."""
    names = list(items_of(run))
    return dict(zip(names, re_execute(run, names), strict=True))


def prices(file: Path, count: int, step_us: int) -> str:
    """Write a random walk with volumes, as bars of even lengths."""
    draw = np.random.default_rng(3)
    close = 100.0 * np.exp(np.cumsum(draw.normal(0.0, 0.02, count)))
    rows = [
        f"{iso(19_000 * DAY_US + place * step_us)},{last:.4f},{last * 1.01:.4f},{last * 0.99:.4f},{last:.4f},{size:.3f}"
        for place, (last, size) in enumerate(zip(close, draw.lognormal(3.0, 0.3, count), strict=True))
    ]
    file.write_text("\n".join(["open_time,open,high,low,close,volume", *rows]))
    return str(file)


@pytest.mark.dist
def test_answers_of_the_whole_model(tiny: Path, shared_ranks: None) -> None:
    given: dict[str, Any] = {"model": str(tiny), "batches": [4, 1], "dtypes": ["fp32"], "max_new_tokens": 6, "seed": 3}
    given["graded"] = 2
    result = compare(ComparisonConfig(**given, limit=3, strategies=["C"]))
    run = Recorded("accuracy_comparison", {**given, "questions": 3}, {"comparison": plain(result)}, {})
    assert len(items_of(run)) == 5
    assert again(run) == items_of(run)
    with pytest.raises(InputError, match="unknown question"):
        list(re_execute(run, ["answer to nobody"]))


@pytest.mark.dist
def test_samples_by_their_seeds_and_votes_from_them(tiny: Path, shared_ranks: None, tmp_path: Path) -> None:
    plan = ConsensusPlan(str(tiny), 6, 1, k=2, asking=Asking(samples=3, max_new_tokens=4, factor=2), dtype="fp32")
    asked = ask_model(plan)
    results = {"answers": plain(asked), "consensus": plain(evaluate_answers(asked))}
    run = Recorded("consensus_evaluation", {"calibrations": ""}, results, {})
    found = items_of(run)
    assert sum(name.startswith("answers to ") for name in found) == 7
    assert again(run) == found
    # A file of recorded answers has its votes counted, and nothing asked.
    save_answers(asked, tmp_path / "answers.json.gz")
    kept = Recorded(
        "consensus_evaluation", {"recorded": str(tmp_path / "answers.json.gz")}, {"consensus": results["consensus"]}, {}
    )
    curve = next(iter(re_execute(kept, ["votes: curve"])))
    assert curve == items_of(kept)["votes: curve"]


@pytest.mark.usefixtures("quick_audits")
def test_backtests_of_single_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = oracle_backtest.price_strategies()[1:3], oracle_backtest.sentiment_strategies()[:2]
    monkeypatch.setattr(oracle_backtest, "price_strategies", lambda: few[0])
    monkeypatch.setattr(oracle_backtest, "sentiment_strategies", lambda _: few[1])
    given: dict[str, Any] = {
        "file": prices(tmp_path / "days.csv", 300, DAY_US),
        "coin": "bitcoin",
        "reading": {"stamp": "open"},
    }
    given |= {"collected": "", "models": [], "effects": [0.25], "seed": 0, "fee_bps": 10.0, "half_spread_bps": 2.0}
    given |= {"draws": 3}
    costs = Costs(fee_bps=10.0, half_spread_bps=2.0)
    markets, found = collected_signals.load_markets(given["file"], "bitcoin", given["reading"])
    scores = signal_studies.choose_scores(markets, found, [0.25])
    with open_ledger("sqlite://") as ledger:
        families = [
            oracle_backtest.study_family(bars, ledger, costs, scored=scored, draws=3, resamples=100)
            for bars, scored in [(markets[0], oracle_backtest.PRICES_ALONE), *signal_studies.traded(scores, found)]
        ]
    rows = [oracle_backtest.trial_rows([each]) for each in families]
    results = plain({"families": {"families": [oracle_backtest.to_dict(families[0])]}})
    results |= plain({"sentiment": {"families": [oracle_backtest.to_dict(families[1])]}})
    run = Recorded("oracle_backtest", given, results, {"trials": rows[0], "sentiment_trials": rows[1]})
    assert len(items_of(run)) == 2 + 2 + 2
    assert again(run) == items_of(run)
    results["families"]["families"][0]["best"]["accounts"][0]["fees"] += 1e-9
    best = next(name for name in items_of(run) if name.startswith("best of price"))
    assert next(iter(re_execute(run, [best]))) != items_of(run)[best]


def test_measures_of_the_market(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "file": prices(tmp_path / "hours.csv", 900, HOUR_US),
        "coin": "bitcoin",
        "reading": {"stamp": "open"},
    }
    given |= {"database": "", "sentiment_model": "crypto-lexicon", "walks": 2, "seed": 1}
    market = load_market(given["file"], "bitcoin", given["reading"])
    news = oracle_measures.load_news("bitcoin", "crypto-lexicon")
    results = {
        "index": plain(oracle_measures.index_over_time(news)),
        "anomalies": plain(AnomaliesRecord(tuple(oracle_measures.injected(market, [2.0, 8.0], 1)))),
        "ratings": plain(oracle_measures.past_ratings(market)),
    }
    run = Recorded("oracle_overview", given, results, {})
    assert len(items_of(run)) > 8
    assert again(run) == items_of(run)


def test_measures_of_risk_by_their_bars(tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "file": prices(tmp_path / "days.csv", 500, DAY_US),
        "coin": "bitcoin",
        "reading": {"stamp": "open"},
    }
    given |= {"level": "warning", "rules": "", "refit_bars": 500, "days_ahead": 7.0, "day_drop": 0.1}
    bars = load_bars(given["file"], "bitcoin", given["reading"], join=False)
    studied = risk_warnings.study_risk(bars[0], horizon_us=7 * DAY_US, drop=0.1, refit_bars=500)
    run = Recorded("risk_warnings", given, {"risk": plain(risk_warnings.record([studied]))}, {})
    assert {"1 day: now", "1 day: tails", "1 day: worth"} <= items_of(run).keys()
    assert again(run) == items_of(run)


def test_simulated_balancers_and_nothing_of_a_study_of_times() -> None:
    run = Recorded("cluster", {}, {"balance": plain(bench_balance(6, 2, seed=4))}, {})
    assert again(run) == items_of(run)
    assert items_of(Recorded("concurrency", {}, {"concurrency": {"levels": []}}, {})) == {}
    assert findings_again("cluster", {}) is None and findings_again("risk_warnings", {}) is None
