"""What backtests of signals (`oracle_backtest`) say, in words."""

from collections.abc import Sequence
from typing import Any

from qubic_lab.studies.finding import Finding, answering, say
from qubic_lab.studies.oracle_backtest import Family

Row = dict[str, Any]
QUESTION = "prediction"
FAMILIES = {
    "price signals": "Price signals",
    "own signals": "Own signals",
    "collected sentiment": "Collected sentiment",
}
"""The questions of families, as sentences begin with them."""


def findings(families: Sequence[Family], collected: bool = False) -> list[Finding]:
    """Say how many families predict anything, then each verdict, and whether real sentiment was measured."""
    real = [family for family in families if not family.simulated]
    said = [_headline(real, collected=bool(collected))] if real else []
    said += map(_verdict_finding, families)
    if not collected:
        said.append(say("The predictive value of real sentiment is not measured here: no collected texts."))
    return answering(QUESTION, said)


def _headline(real: Sequence[Family], *, collected: bool) -> Finding:
    """Count the families of real signals with evidence, and name the Sharpe ratio with the smallest p.

    Without `collected` texts they are of prices.
    """
    best = min((family.verdict for family in real), key=lambda verdict: verdict.p)
    low, high = best.interval or (None, None)
    values: Row = {"evidence": sum(family.evidence for family in real), "families": len(real)}
    values |= {"key": best.sharpe, "low": low, "high": high, "unit": say("best Sharpe")}
    values |= {"rule": ".2f"}
    if collected:
        text = "None of {families:set} of signals on real data beat luck after costs."
        if values["evidence"]:
            text = "{evidence} of {families:set} of signals on real data beat luck after costs."
    else:
        text = "None of {families:set} of price signals beat luck after costs; texts were not tested."
        if values["evidence"]:
            text = "{evidence} of {families:set} of price signals beat luck after costs; texts were not tested."
    return say(text, **values)


def _verdict_finding(family: Family) -> Finding:
    verdict, timing = family.verdict, family.timing
    values: Row = {"family": _named(family), "trials": verdict.trials, "p": verdict.p, "sharpe": verdict.sharpe}
    if verdict.sharpe is None or verdict.detectable is None:
        if family.best.account.ruin is not None:
            text = "{family}: no evidence: the chosen one of {trials:trial} lost all that it had."
        else:
            text = "{family}: no evidence: the chosen one of {trials:trial} never trades or its returns do not vary."
        return say(text, **values)
    values |= {"years": verdict.years, "holding": timing.p}
    if family.evidence:
        text = (
            "{family}: a Sharpe ratio of {sharpe:.2f} over {years:.2g} years is evidence (best of {trials:trial}, SPA "
            "p {p:p}; beyond what holding explains, p {holding:p})."
        )
        return say(text, **values)
    if verdict.evidence:
        text = (
            "{family}: no evidence: a Sharpe ratio of {sharpe:.2f} is more than luck (best of {trials:trial}, SPA p "
            "{p:p}), but not beyond what holding explains (p {holding:p})."
        )
        return say(text, **values)
    text = (
        "{family}: no evidence: a Sharpe ratio of {sharpe:.2f} over {years:.2g} years (best of {trials:trial}, SPA p "
        "{p:p}); the smallest that would have shown is {detectable:.2f}."
    )
    return say(text, detectable=verdict.detectable, **values)


def _named(family: Family) -> Finding:
    bars = family.bars.name
    if family.effect is not None:
        return say("SIMULATION: sentiment with effect {effect:g}, {bars}", effect=family.effect, bars=bars)
    question = say(FAMILIES[family.question]) if family.question in FAMILIES else family.question
    return say("{question}, {bars}", question=question, bars=bars)
