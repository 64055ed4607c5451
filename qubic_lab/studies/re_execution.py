"""What studies recorded, executed again: single answers, votes, backtests and measures of the market, by their names.

Only what is no time is here, and what can be executed alone. `items_of` gives what a run recorded of it, and
`re_execute` what the same gives now: where code, model and data are the same, it is equal bit for bit.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from qubic_lab.bench.balance import BalanceResult, bench_balance
from qubic_lab.bench.compression import CompressionResult
from qubic_lab.bench.concurrency import ConcurrencyResult
from qubic_lab.bench.dispatch import DispatchResult
from qubic_lab.bench.engine import EngineResult
from qubic_lab.bench.failover import FailoverResult
from qubic_lab.bench.scale import ScaleResult
from qubic_lab.bench.vote_load import VoteLoadResult
from qubic_lab.checked_yaml import check_content, codec
from qubic_lab.errors import QubicLabError
from qubic_lab.evals.compare import answer_again
from qubic_lab.evals.comparison import SplitComparison
from qubic_lab.evals.comparison_plan import ComparisonConfig
from qubic_lab.evals.consensus_eval import (
    ConsensusEvaluation,
    ModelAnswers,
    ask_again,
    evaluate_answers,
    judge_again,
    load_answers,
)
from qubic_lab.oracle.backtest.costs import Costs
from qubic_lab.oracle.backtest.evaluate import backtest, signal_name
from qubic_lab.oracle.model.timestamps import DAY_US, HOUR_US
from qubic_lab.studies import (
    accuracy_findings,
    cluster,
    collected_signals,
    concurrency,
    consensus_findings,
    engine_gains,
    engine_speed,
    forecast_accuracy,
    oracle_backtest,
    oracle_measures,
    oracle_overview,
    risk_warnings,
    signal_studies,
)
from qubic_lab.studies.cluster_scale import ScaleOnPaper
from qubic_lab.studies.finding import Finding
from qubic_lab.studies.market_bars import StudyBars, load_bars, load_market
from qubic_lab.studies.own_signals import OWN_SIGNALS

T = TypeVar("T")
ANSWER = ("text", "tokens", "correct", "cut")
ANSWER_TO, ANSWERS_TO, VOTES, BEST = "answer to ", "answers to ", "votes: ", "best of "
TRIALS = ("trials", "sentiment_trials")
ACCOUNTS = ("accounts", "random", "lags")


@dataclass(frozen=True)
class Recorded:
    """What a run of a study recorded: its parameters, its results and the rows of its tables, as plain values."""

    study: str
    parameters: Mapping[str, Any]
    results: Mapping[str, Mapping[str, Any]]
    tables: Mapping[str, Sequence[Mapping[str, Any]]]


def items_of(run: Recorded) -> dict[str, Any]:
    """Return what a run recorded that can be executed again alone, by name; nothing of a study of times."""
    return STUDIES[run.study].items(run) if run.study in STUDIES else {}


def re_execute(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    """Yield the values that items have now, in the order of their names; a model is loaded once for all of them.

    Paths in parameters are seen from the working folder.

    Raises:
        QubicLabError: a model, file or database is not there, or another version recorded the run.
    """
    try:
        yield from map(plain, STUDIES[run.study].execute(run, names))
    except KeyError as error:
        raise QubicLabError(f"another version of the study recorded it, without {error}") from None


def findings_again(study: str, results: Mapping[str, Mapping[str, Any]]) -> list[Finding] | None:
    """Return the findings that follow from recorded results.

    None: they follow from more than was recorded, or another version recorded it.
    """
    try:
        return list(FINDINGS[study](results)) if study in FINDINGS else None
    except (KeyError, ValidationError):
        return None


def plain(value: Any) -> Any:
    """Return a value as it is read back from JSON; what is no number is missing."""
    found = codec(type(value)).dump_python(value, by_alias=True, mode="json")
    return json.loads(json.dumps(found, default=lambda each: each.item()), parse_constant=lambda _: None)


def _read(results: Mapping[str, Mapping[str, Any]], name: str, kind: type[T]) -> T:
    return codec(kind).validate_python(results[name])


def _answers(run: Recorded) -> dict[str, Any]:
    rows = run.results.get("comparison", {}).get("answers", ())
    return {f"{ANSWER_TO}{row['id']}": {name: row.get(name) for name in ANSWER} for row in rows}


def _answer_again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    given = run.parameters
    config = ComparisonConfig(
        model=given["model"],
        batches=given["batches"],
        dtypes=given["dtypes"],
        limit=given["questions"],
        graded=given.get("graded", 0),
        max_new_tokens=given["max_new_tokens"],
        threads=run.results["comparison"]["threads"],
        seed=given["seed"],
    )
    for row in answer_again(config, [name.removeprefix(ANSWER_TO) for name in names]):
        yield {name: getattr(row, name) for name in ANSWER}


def _answers_and_votes(run: Recorded) -> dict[str, Any]:
    rows = run.results.get("answers", {}).get("answers", ())
    known = rows or run.parameters.get("recorded")  # older versions kept no answers of their own
    votes = run.results.get("consensus", {}).get("votes", {}) if known else {}
    saved = ["calibrated"] if run.parameters.get("calibrations") else []  # it names the files that were written
    return {f"{ANSWERS_TO}{row['id']}": row for row in rows} | {
        f"{VOTES}{name}": value for name, value in votes.items() if name not in saved
    }


def _ask_and_count_again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    if "answers" in run.results:
        asked = judge_again(check_content(ModelAnswers, run.results["answers"], "recorded answers"))
    else:
        asked = load_answers(Path(run.parameters["recorded"]))
    answers = ask_again(asked, [name.removeprefix(ANSWERS_TO) for name in names if name.startswith(ANSWERS_TO)])
    counted = plain(evaluate_answers(asked).votes) if any(name.startswith(VOTES) for name in names) else {}
    for name in names:
        yield counted[name.removeprefix(VOTES)] if name.startswith(VOTES) else next(answers)


def _trials(run: Recorded) -> dict[str, Any]:
    """Return the trials but for own signals, and the accounts of the best ones; what the ledger decides is left out."""
    rows = [row for name in TRIALS for row in run.tables.get(name, ()) if not row["family"].startswith(OWN_SIGNALS)]
    made = [each for name in ("families", "sentiment") for each in run.results.get(name, {}).get("families", ())]
    return {f"{row['family']}: {row['signal']}": _without_ledger(row) for row in rows} | {
        f"{BEST}{each['question']}: {signal_name(best['strategy'], best['parameters'])}": {
            name: best[name] for name in ACCOUNTS
        }
        for each in made
        for best in [each["best"]]
        if not each["question"].startswith(OWN_SIGNALS)
    }


def _without_ledger(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "new"}


def _trade_again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    given = run.parameters
    costs = Costs(fee_bps=given["fee_bps"], half_spread_bps=given["half_spread_bps"])
    markets, found = collected_signals.load_markets(
        given["file"], given["coin"], given["reading"], given["collected"], given["models"]
    )
    scores = signal_studies.choose_scores(markets, found, given["effects"], given["seed"])
    families = [(bars, oracle_backtest.PRICES_ALONE) for bars in markets] + signal_studies.traded(scores, found)
    tried = {
        (f"{scored.question}, {bars.name}", strategy.name): (bars, scored.texts, strategy)
        for bars, scored in families
        for strategy in oracle_backtest.strategies_of(scored)
    }
    for name in names:
        title, _, signal = name.removeprefix(BEST).rpartition(": ")
        bars, texts, strategy = tried[title, signal]
        config = oracle_backtest.quick_config(costs, bars.lag)
        if name.startswith(BEST):
            config = oracle_backtest.full_config(config, given["draws"], given["seed"])
            found_again = backtest(bars.bars, strategy, config, texts=texts).to_dict()
            yield {part: found_again[part] for part in ACCOUNTS}
        else:
            yield _without_ledger(oracle_backtest.trial_row(title, backtest(bars.bars, strategy, config, texts=texts)))


def _measures(run: Recorded) -> dict[str, Any]:
    curves = run.results.get("anomalies", {}).get("curves", ())
    parts = ("index", "sentiment_confidence", "forecasts", "ratings")
    return {f"anomalies: {each['kind']} of {each['size']:g}": each for each in curves} | {
        name: run.results[name] for name in parts if name in run.results
    }


def _measure_again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    given, seed = run.parameters, run.parameters["seed"]
    market = load_market(given["file"], given["coin"], given["reading"])
    measures: dict[str, Callable[[], Any]] = {
        "index": lambda: oracle_measures.index_over_time(
            oracle_measures.load_news(market.coin, given["sentiment_model"], given["database"])
        ),
        "sentiment_confidence": lambda: oracle_overview.confidence(
            oracle_measures.find_scorer(given["sentiment_model"]), seed
        ),
        "forecasts": lambda: {
            **forecast_accuracy.to_record(oracle_measures.past_forecasts(market.hours, seed)),
            "simulated": oracle_measures.simulated_coverage(given["walks"], seed=seed),
        },
        "ratings": lambda: oracle_measures.past_ratings(market),
    }
    for name in names:
        if name in measures:
            yield measures[name]()
        else:
            kind, _, size = name.removeprefix("anomalies: ").rpartition(" of ")
            yield {each.kind: each for each in oracle_measures.injected(market, [float(size)], seed)}[kind]


def _risks(run: Recorded) -> dict[str, Any]:
    found = run.results.get("risk", {"risks": (), "worth": ()})
    parts = {
        f"{risk['bars_of']}: {part}": value
        for risk in found["risks"]
        for part, value in risk.items()
        if isinstance(value, dict | list)
    }
    return parts | {f"{each['bars_of']}: worth": each for each in found["worth"]}


def _warn_again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    given, known = run.parameters, dict[str, Any]()
    for name in names:
        bars_of, _, part = name.rpartition(": ")
        if bars_of not in known:
            bars = load_bars(given["file"], given["coin"], given["reading"], join=False)
            study = _study_risk({each.name: each for each in bars}[bars_of], given)
            known[bars_of] = plain(risk_warnings.record([study]))
        recorded = known[bars_of]
        yield recorded["worth"][0] if part == "worth" else recorded["risks"][0][part]


def _study_risk(bars: StudyBars, given: Mapping[str, Any]) -> risk_warnings.RiskStudy:
    days = bars.frame_us >= DAY_US
    ahead_us = given["days_ahead"] * DAY_US if days else given["hours_ahead"] * HOUR_US
    drop = given["day_drop"] if days else given["drop"]
    options = {name: given[name] for name in ("level", "rules", "refit_bars")}
    return risk_warnings.study_risk(bars, horizon_us=round(ahead_us), drop=drop, **options)


def _simulated(run: Recorded) -> dict[str, Any]:
    return {"balance": run.results["balance"]} if "balance" in run.results else {}


def _simulate_again(run: Recorded, names: Sequence[str]) -> Iterator[Any]:
    given = run.results["balance"]
    yield from (bench_balance(given["requests"], given["nodes"], given["seed"]) for _ in names)


@dataclass(frozen=True)
class RepeatableStudy:
    """How a study's results are named, and executed again."""

    items: Callable[[Recorded], dict[str, Any]]
    execute: Callable[[Recorded, Sequence[str]], Iterator[Any]]


STUDIES = {
    "accuracy_comparison": RepeatableStudy(_answers, _answer_again),
    "consensus_evaluation": RepeatableStudy(_answers_and_votes, _ask_and_count_again),
    "cluster": RepeatableStudy(_simulated, _simulate_again),
    "oracle_backtest": RepeatableStudy(_trials, _trade_again),
    "oracle_overview": RepeatableStudy(_measures, _measure_again),
    "risk_warnings": RepeatableStudy(_risks, _warn_again),
}


def _accuracy_findings(results: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    packing = _read(results, "compression", CompressionResult)
    comparison = _read(results, "comparison", SplitComparison)
    return [*accuracy_findings.findings(comparison), accuracy_findings.packing_finding(packing)]


def _cluster_findings(results: Mapping[str, Mapping[str, Any]]) -> list[Finding]:
    return cluster.findings(
        _read(results, "balance", BalanceResult),
        _read(results, "dispatch", DispatchResult),
        _read(results, "failover", FailoverResult),
        _read(results, "scale_on_paper", ScaleOnPaper),
        _read(results, "scale", ScaleResult) if "scale" in results else None,
        _read(results, "votes", VoteLoadResult) if "votes" in results else None,
    )


FINDINGS: dict[str, Callable[[Mapping[str, Mapping[str, Any]]], list[Finding]]] = {
    "accuracy_comparison": _accuracy_findings,
    "consensus_evaluation": lambda found: consensus_findings.findings(_read(found, "consensus", ConsensusEvaluation)),
    "concurrency": lambda found: concurrency.findings(_read(found, "concurrency", ConcurrencyResult)),
    "engine_gains": lambda found: engine_gains.findings(_read(found, "gains", engine_gains.Gains)),
    "engine_speed": lambda found: engine_speed.findings(_read(found, "engine_speed", EngineResult)),
    "cluster": _cluster_findings,
}
"""Of studies whose results hold all that their findings follow from."""
