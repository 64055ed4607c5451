"""What votes gain over single answers (`qubic_lab.evals.consensus_eval`), in words."""

from typing import Any

from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.confidence import FEWEST_QUESTIONS, ConfidenceReport
from qubic_lab.evals.consensus_eval import ConsensusEvaluation
from qubic_lab.evals.paired import MeanEstimate, share_estimate
from qubic_lab.evals.self_consistency import ALL
from qubic_lab.studies.finding import Finding, answering, estimate, say

QUESTION = "voting"
SMALL_P = 0.05
SHOWN = {"better": "better than", "worse": "worse than", "no difference shown": "not clearly better than"}
"""What a vote is by each verdict, beside another answer."""
VERDICTS = {each: each for each in SHOWN}
KINDS = {name: name for name in ("any", "factual", "analytical", "technical", "creative")}
LEVELS = {each: each.value for each in ConfidenceLevel}


def findings(result: ConsensusEvaluation) -> list[Finding]:
    """Say what voting gains, for which questions, at which cost, and what its confidence is worth."""
    parts = (
        _gain_findings,
        _greedy_findings,
        _asked_findings,
        _baseline_findings,
        _error_findings,
        _confidence_findings,
        _creative_findings,
    )
    return answering(QUESTION, [each for part in parts for each in part(result)])


def verdict(difference: MeanEstimate) -> str:
    """Say what the interval of a difference shows: better, worse, or neither."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "no difference shown"


def _estimate(found: MeanEstimate) -> Finding:
    return estimate(found.value, found.low, found.high)


def _gain_findings(result: ConsensusEvaluation) -> list[Finding]:
    votes, gain = result.votes, result.votes.gains[ALL]
    greedy, longer = votes.greedy_gains[ALL].difference, votes.equal_tokens.gain.difference
    kinds = [
        say("{kind} {gain:points} (n = {n})", kind=_kind(kind), gain=_estimate(each.difference), n=each.difference.n)
        for kind, each in votes.gains.items()
        if kind != ALL
    ]
    said = [
        say(
            "{k} votes are {longer} one longer answer of equal cost, {greedy} one plain answer.",
            k=votes.k,
            longer=say(SHOWN[verdict(longer)]),
            key=longer.value,
            low=longer.low,
            high=longer.high,
            unit=say("points"),
            rule="points",
            greedy=say(SHOWN[verdict(greedy)]),
        ),
        say(
            "The vote of {model} is right on {vote:percent} of {questions:question}, one sample on {sample:percent}, "
            "the plain (greedy) answer on {greedy:percent}.",
            model=result.model,
            questions=votes.questions,
            vote=gain.method.value,
            sample=gain.baseline.value,
            greedy=votes.greedy_gains[ALL].baseline.value,
        ),
        say("The vote minus one sample is {gain:points} points.", gain=_estimate(gain.difference)),
        say("The vote takes {k} times the {tokens:.0f} tokens of one sample.", k=votes.k, tokens=votes.tokens),
    ]
    if kinds:
        said.append(say("By type of question, the vote minus one sample is, in points: {kinds}.", kinds=kinds))
    return said


def _asked_findings(result: ConsensusEvaluation) -> list[Finding]:
    votes, asking = result.votes, result.plan.asking
    text = "Questions: {judged}; temperature {temperature:g}."
    if result.asked_utc:
        text = "Questions: {judged}; temperature {temperature:g}; asked on {day}."
    return [
        say(text, judged=votes.judged, temperature=asking.temperature, day=result.asked_utc[:10]),
        say(
            "{samples:percent} of the samples and {greedy:percent} of the greedy answers were cut at {limit} tokens.",
            samples=votes.cut,
            greedy=votes.greedy_cut,
            limit=asking.max_new_tokens,
        ),
    ]


def _greedy_findings(result: ConsensusEvaluation) -> list[Finding]:
    tests = result.votes.against_greedy
    shown = [_kind(kind) for kind, test in tests.items() if kind != ALL and test.holm_p < SMALL_P]
    return [
        say("The greedy answer takes the tokens of one sample."),
        say(
            "For a single vote against the greedy answer, the exact McNemar test gives p {p:p}; after Holm, a "
            "difference is shown for {shown}.",
            p=tests[ALL].p,
            shown=shown or [say("no type of question")],
        ),
    ]


def _baseline_findings(result: ConsensusEvaluation) -> list[Finding]:
    votes, equal, signal = result.votes, result.votes.equal_tokens.gain.difference, result.votes.rule_gain.difference
    said = [
        say(
            "At equal tokens, the vote minus a longer greedy answer is {gain:points} points (held out, n = {n}).",
            gain=_estimate(equal),
            n=equal.n,
        ),
        say(
            "The vote minus the best single signal ({rule} of {k}) is {gain:points} points (held out, n = {n}).",
            rule=votes.best_rule,
            k=votes.k,
            gain=_estimate(signal),
            n=signal.n,
        ),
    ]
    if (found := votes.certified) is not None:
        said.append(
            say(
                "Votes that stop when certified at {error:percent}, or when nothing can change, save {saved:percent} "
                "of the tokens of {k} samples, with {difference:points} points of right answers.",
                error=found.error,
                saved=_estimate(found.saved),
                k=found.k,
                difference=_estimate(found.difference),
            )
        )
        said.append(
            say(
                "{certified:percent} of these votes are certified, {other:percent} with another winner than all {k} "
                "samples.",
                certified=_estimate(found.certified),
                other=_estimate(found.other_winner),
                k=found.k,
            )
        )
    return said


def _error_findings(result: ConsensusEvaluation) -> list[Finding]:
    votes, agreeing = result.votes, result.votes.agreeing_wrong
    oracle = next(each for each in votes.curve if (each.method, each.k) == ("oracle", votes.k))
    said = [
        say(
            "At least one of {k} samples is right on {right:percent} of the questions: a perfect choice would reach "
            "that.",
            k=votes.k,
            right=_estimate(oracle.right),
        ),
        say(
            "On {wrong:percent} of the questions, more than half of the samples agree on a wrong answer, which no vote "
            "can notice.",
            wrong=_estimate(agreeing.questions),
        ),
    ]
    if agreeing.pairs is not None:
        text = "Two wrong samples say the same {share:percent} of the time."
        said.append(say(text, share=agreeing.pairs.value))
    if votes.effective_votes is not None:
        text = "{k} samples are worth {votes:.1f} independent votes."
        said.append(say(text, k=votes.k, votes=votes.effective_votes))
    return said


def _confidence_findings(result: ConsensusEvaluation) -> list[Finding]:
    said = [
        say(
            "The confidence by {name} has an ECE of {error:.3f} on {votes:held-out vote} ({perfect:.3f} if perfect), "
            "Brier {brier:.3f}.",
            name=name,
            error=estimate(report.ece, *report.ece_interval),
            votes=report.items,
            perfect=report.ece_if_calibrated,
            brier=report.brier,
        )
        for name, report in reports(result)
    ]
    said += [
        say(
            "Held-out votes of {kind} questions at the level '{level}' or a better one: {wrong:percent} of {votes} are "
            "wrong, at most {most:percent} promised.",
            kind=_kind(each.question_type),
            level=say(LEVELS[at.level]),
            wrong=_estimate(share_estimate(at.wrong, at.votes)),
            votes=at.votes,
            most=at.most_wrong,
        )
        for each in result.votes.calibrated
        for at in each.levels
        if at.votes
    ]
    if missing := result.votes.uncalibrated:
        text = "Not calibrated, as {needed} votes are needed: {kinds}."
        said.append(say(text, needed=FEWEST_QUESTIONS, kinds=[_kind(each) for each in missing]))
    return said


def _creative_findings(result: ConsensusEvaluation) -> list[Finding]:
    found = result.votes.diversity
    if found is None:
        return []
    return [
        say("Creative questions have no right answer, so only the variety of answers is measured."),
        say(
            "In {samples:sample} of {questions:creative question}, {share:percent} of the pairs of words are "
            "different.",
            samples=found.samples,
            questions=found.questions,
            share=found.distinct_2.value,
        ),
    ]


def _kind(name: str) -> Finding | str:
    return say(KINDS[name]) if name in KINDS else name


def reports(result: ConsensusEvaluation) -> list[tuple[Finding, ConfidenceReport]]:
    """Return each way to be confident, in words, with its quality on held-out votes."""
    votes = result.votes
    found = [] if votes.vote_share is None else [(say("the vote's share"), votes.vote_share)]
    for each in votes.calibrated:
        values: dict[str, Any] = {"kind": _kind(each.question_type), "method": each.method}
        values["signals"] = [name.replace("_", " ") for name in each.signals] or [say("no signal")]
        found.append((say("calibration for {kind} ({method}: {signals})", **values), each.report))
    return found
