"""From votes to one result: groups of equal answers, the winner, its confidence, and what follows from it.

The result holds everything that was weighed, so it can be inspected later. Pure: the same votes give the same result in
any order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from qubic_lab.consensus.answer_readers import PROSE, FinalAnswer
from qubic_lab.consensus.answers import before_cut, final_answer
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.conclusions import without_thoughts
from qubic_lab.consensus.confidence import Confidence, Signals, VoteCalibration, confidence_of
from qubic_lab.consensus.dependence import effective_votes, find_copies, merge_copies
from qubic_lab.consensus.merging import AddedSentence, MergedAnswer, merge
from qubic_lab.consensus.quality import Quality, judge_all
from qubic_lab.consensus.similarity import (
    THRESHOLDS,
    Bond,
    Embed,
    Similarities,
    SimilarityThresholds,
    bonds,
    compare,
    group,
)
from qubic_lab.consensus.voting import DEFAULT_RULE, Absence, AbsenceReason, Ballot, Decision, Vote, decide
from qubic_lab.consensus.weights import WeightParts, weigh

CONFLICT_SHARE = 0.5
"""A vote is in conflict if its leader has at most this share of the ballots."""
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class VotingConfig:
    """How votes are counted; with `merge`, sentences of others are added to a winning explanation (see `merging`)."""

    rule: str = DEFAULT_RULE
    merge: bool = False
    thresholds: SimilarityThresholds = THRESHOLDS

    @property
    def fallback(self) -> str:
        """The plurality rule that names the leader if no group meets the rule."""
        return "weighted-plurality" if self.rule == "weighted" else "plurality"


@dataclass(frozen=True)
class VoteContext:
    """What is known before a vote: the nodes' weights, the error correlation ρ, calibrations and an embedder.

    `rho` is None without a history; `question_type` and `model` select the calibration.
    """

    weights: Mapping[str, WeightParts] = field(default_factory=dict)
    rho: float | None = None
    calibrations: tuple[VoteCalibration, ...] = ()
    model: str = ""
    question_type: str = "any"
    embed: Embed | None = None

    def weight(self, node: str) -> WeightParts:
        """Return a node's weight; an unknown node has that of a new voter."""
        return self.weights.get(node) or weigh()


@dataclass(frozen=True)
class VoterTrail:
    """A voter's answer, how it was read and judged, its weight and its group; `dropped` says why it does not count."""

    vote: Vote
    final: FinalAnswer
    quality: Quality
    weight: WeightParts
    group: int | None
    dropped: str


@dataclass(frozen=True)
class Consensus:
    """The result of a vote with its whole trail.

    `text` is the reply to the client, and `how` its origin: the best match of the winning or leading group, or a
    cautious answer. `level` follows from the confidence; if uncalibrated, from the vote alone. In a `conflict` no group
    has more than half of the ballots, and `disagreement` is 1 less the leader's share. `groups` holds the voters of
    each class of equal answers, the largest first; `voters` are sorted by name, and `similarities` and `bonds` are in
    their order. `rho` is the correlation of the voters' errors; None: unknown, taken as 0. `additions` are sentences of
    other answers that were added to the best match; `disputed` ones were left out because as many answers deny them.
    """

    question: str
    text: str
    how: str
    level: ConfidenceLevel
    confidence: Confidence
    conflict: bool
    disagreement: float
    decision: Decision
    groups: tuple[tuple[str, ...], ...]
    voters: tuple[VoterTrail, ...]
    absences: tuple[Absence, ...]
    ballots: tuple[Ballot, ...]
    similarities: Similarities
    bonds: tuple[tuple[Bond, ...], ...]
    effective_votes: float
    rho: float | None
    notes: tuple[str, ...]
    additions: tuple[AddedSentence, ...]
    disputed: tuple[AddedSentence, ...]

    def cautious(self) -> "Consensus":
        """Return it with a cautious answer, which claims nothing."""
        text, level = _cautious_answer(self.decision, self.voters), ConfidenceLevel.FALLBACK
        return replace(self, text=text, how="cautious answer", level=level, additions=(), disputed=())


def deliberate(
    question: str, votes: Sequence[Vote], absences: Sequence[Absence], context: VoteContext, config: VotingConfig
) -> Consensus:
    """Return the result of a vote; there may be no votes.

    Unusable answers (empty, refusing, looping, cut before a conclusion) count in the total and for no group, as do
    failed and late voters: one answer out of three is not a majority. Copies count as one ballot. Voters that were
    stopped early do not count.
    """
    votes = sorted(votes, key=lambda vote: vote.voter)
    finals = [final_answer(_counted(vote, question), question) for vote in votes]
    similarities = compare([vote.text for vote in votes], context.embed)
    table = bonds(finals, similarities, config.thresholds)
    trails, groups = _grouped(question, votes, finals, similarities, table, context)
    ballots = [Ballot(each.vote.voter, each.group, each.weight.weight) for each in trails]
    ballots += [Ballot(each.voter, None) for each in absences if each.why is not AbsenceReason.STOPPED]
    kept, copies = merge_copies(ballots, find_copies({vote.voter: vote.source for vote in votes}))
    decision = decide(kept, config.rule, config.fallback)
    trails = tuple(replace(each, dropped=copies.get(each.vote.voter, each.dropped)) for each in trails)
    signals = _signals(decision, trails, similarities)
    confidence = confidence_of(signals, context.model, context.question_type, context.calibrations)
    level = _level(decision, confidence, config)
    reply, how = _reply(level, decision, trails, similarities, config.merge)
    weights = [each.weight for each in kept if each.group is not None]
    return Consensus(
        question=question,
        text=reply.text,
        how=how,
        level=level,
        confidence=confidence,
        conflict=signals.vote_share <= CONFLICT_SHARE,
        disagreement=1 - signals.vote_share,
        decision=decision,
        groups=groups,
        voters=trails,
        absences=tuple(absences),
        ballots=kept,
        similarities=similarities,
        bonds=table,
        effective_votes=effective_votes(weights, context.rho or 0.0),
        rho=context.rho,
        notes=_notes(similarities, copies, context),
        additions=reply.added,
        disputed=reply.disputed,
    )


def _counted(vote: Vote, question: str) -> str:
    """Return what counts of a vote's text: all of it unless it was cut."""
    return before_cut(vote.text, question) if vote.finish_reason == "length" else vote.text


def _best_match(members: Sequence[int], trails: Sequence[VoterTrail], similarities: Similarities) -> int:
    """Return the member with the highest mean similarity times quality; ties go to the first."""
    alike = similarities.values_NN[list(members)][:, list(members)].mean(axis=1)
    scores = [float(value) * trails[index].quality.value for index, value in zip(members, alike, strict=True)]
    return members[scores.index(max(scores))]


def _grouped(
    question: str,
    votes: Sequence[Vote],
    finals: Sequence[FinalAnswer],
    similarities: Similarities,
    table: Sequence[Sequence[Bond]],
    context: VoteContext,
) -> tuple[tuple[VoterTrail, ...], tuple[tuple[str, ...], ...]]:
    """Return each vote judged and with its group, and the voters of each group, the largest first."""
    texts, reasons = [vote.text for vote in votes], [vote.finish_reason for vote in votes]
    qualities = judge_all(question, texts, reasons, finals, similarities, context.embed)
    usable = [[index for index in members if qualities[index].usable] for members in group(similarities, table)]
    classes = sorted(filter(None, usable), key=lambda each: (-len(each), each[0]))
    place = {index: number for number, members in enumerate(classes) for index in members}
    judged = enumerate(zip(votes, finals, qualities, strict=True))
    trails = tuple(
        VoterTrail(vote, final, quality, context.weight(vote.node), place.get(index), quality.why_unusable)
        for index, (vote, final, quality) in judged
    )
    return trails, tuple(tuple(votes[index].voter for index in members) for members in classes)


def _signals(decision: Decision, trails: Sequence[VoterTrail], similarities: Similarities) -> Signals:
    leader = decision.standings[0] if decision.standings else None
    members = [index for index, each in enumerate(trails) if leader is not None and each.vote.voter in leader.voters]
    alike = similarities.values_NN[members][:, members]
    return Signals.of(
        decision,
        logprobs=[trails[index].vote.mean_logprob for index in members],
        tokens=[trails[index].vote.new_tokens for index in members],
        similarity=float(alike.mean()) if members else None,
    )


def _level(decision: Decision, confidence: Confidence, config: VotingConfig) -> ConfidenceLevel:
    """Return what to do; without a calibration, a winner by the rule gets an answer with a note at most."""
    if not decision.standings:
        return ConfidenceLevel.FALLBACK
    if confidence.level is not None:
        return confidence.level
    won = decision.winner is not None and decision.rule == config.rule
    return ConfidenceLevel.NOTE if won else ConfidenceLevel.RECOMPUTE


def _reply(
    level: ConfidenceLevel,
    decision: Decision,
    trails: Sequence[VoterTrail],
    similarities: Similarities,
    may_merge: bool,
) -> tuple[MergedAnswer, str]:
    """Return the reply to the client and its origin; sentences of others are added to explanations only."""
    if level is ConfidenceLevel.FALLBACK or decision.winner is None:
        return MergedAnswer(_cautious_answer(decision, trails)), "cautious answer"
    members = [index for index, each in enumerate(trails) if each.group == decision.winner]
    best = _best_match(members, trails, similarities)
    vote = trails[best].vote
    leads = "winning" if level in (ConfidenceLevel.ANSWER, ConfidenceLevel.NOTE) else "leading"
    how = f"best match of the {leads} group: {vote.voter}"
    if not may_merge or trails[best].final.kind != PROSE:
        return MergedAnswer(without_thoughts(vote.text).strip()), how
    texts = {each.vote.voter: each.vote.text for each in trails if each.quality.usable}
    merged = merge(vote.voter, [trails[index].vote.voter for index in members], texts)
    return merged, f"{how}, with sentences of others" if merged.added else how


def _cautious_answer(decision: Decision, trails: Sequence[VoterTrail]) -> str:
    """Return a text that only lists the answers and their numbers of voters."""
    if not decision.standings:
        return f"No answer: none of the {decision.ballots} voters gave a usable one."
    lines = ["There is no certain answer. The voters said:"]
    for standing in decision.standings:
        trail = next(each for each in trails if each.vote.voter in standing.voters)
        text = " ".join((trail.final.text or trail.vote.text).split())
        if len(text) > SHOWN_CHARACTERS:
            text = f"{text[:SHOWN_CHARACTERS].rstrip()} …"
        lines.append(f"- {text} ({len(standing.voters)} of {decision.ballots})")
    return "\n".join(lines)


def _notes(similarities: Similarities, copies: Mapping[str, str], context: VoteContext) -> tuple[str, ...]:
    notes = list(similarities.notes)
    if copies:
        notes.append(f"{len(copies)} ballots are copies and do not count")
    if context.rho is None:
        notes.append("the correlation of the voters' errors is unknown: they count as independent")
    return tuple(notes)
