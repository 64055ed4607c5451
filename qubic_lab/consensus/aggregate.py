"""From votes to a reply: who said the same, who won, how likely that is right, and what follows from it.

Everything that was weighed stands in the result, so that a reply can be read back and questioned. Pure: the same votes
give the same reply, in whatever order they came.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from qubic_lab.consensus.answers import PROSE, FinalAnswer, final_answer, without_thoughts
from qubic_lab.consensus.confidence import (
    Confidence,
    ConfidenceLevel,
    ConfidenceThresholds,
    Signals,
    VoteCalibration,
    confidence_of,
)
from qubic_lab.consensus.dependence import effective_votes, find_copies, merge_copies
from qubic_lab.consensus.merging import AddedSentence, merge
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
from qubic_lab.consensus.stopping import ONLY_CERTAIN, StopRule, reason_to_stop
from qubic_lab.consensus.vote import Absence, Vote
from qubic_lab.consensus.voting import DEFAULT_RULE, Ballot, Decision, DroppedBallot, decide
from qubic_lab.consensus.weights import WeightParts, weigh

UNKNOWN_RHO = 0.0
"""Where nothing is known of how voters err together they count as independent, and the reply says so."""
CONFLICT_SHARE = 0.5
"""A vote whose leader has no more than this share of ballots is a conflict."""
SHOWN_CHARACTERS = 200
_FALLBACK = {"majority": "plurality", "super-majority": "plurality", "weighted": "weighted-plurality"}


@dataclass(frozen=True)
class VotingConfig:
    """How votes are counted, and what is done at which confidence.

    With `merge` an explanation that won is given with what others of its group add (see `merging`).
    """

    rule: str = DEFAULT_RULE
    merge: bool = False
    levels: ConfidenceThresholds = field(default_factory=ConfidenceThresholds)
    thresholds: SimilarityThresholds = THRESHOLDS

    @property
    def fallback(self) -> str | None:
        """The plurality that tells the leader where nobody has what the rule asks for."""
        return _FALLBACK.get(self.rule)


@dataclass(frozen=True)
class VoteContext:
    """What is known before the votes: of nodes their weights, of voters' errors ρ, calibrations, and an embedder.

    `rho` is None where there is no history; `question_type` and `model` say which calibration fits.
    """

    weights: Mapping[str, WeightParts] = field(default_factory=dict)
    rho: float | None = None
    calibrations: tuple[VoteCalibration, ...] = ()
    model: str = ""
    question_type: str = "any"
    embed: Embed | None = None

    def weight(self, node: str) -> WeightParts:
        """Return what a node's vote weighs; of one that nothing is known of what a new voter's does."""
        return self.weights.get(node) or weigh()


@dataclass(frozen=True)
class VoterTrail:
    """A voter's part: its answer, how that was read and judged, what it weighs, and the group that it is in.

    `group` is None where its answer does not count; `dropped` says why, or is empty.
    """

    vote: Vote
    final: FinalAnswer
    quality: Quality
    weight: WeightParts
    group: int | None
    dropped: str


@dataclass(frozen=True)
class ConsensusResult:
    """What a vote came to, with its whole trail.

    Attributes:
        question: that was asked.
        text: what the client is told.
        how: best match of the winning group, of the leader's, or a cautious answer that lists what was said.
        additions: sentences of others that were added to the best match.
        disputed: such as were left out, since as many deny them.
        level: what the confidence asks for; of an uncalibrated one what the vote alone says.
        confidence: a probability, or None with the reason.
        conflict: whether no group has more than half of the ballots.
        disagreement: 1 less the leader's share of ballots.
        decision: the count.
        groups: the voters of each class of equal answers, the largest first.
        voters: each one's part, by name.
        absences: who gave no vote.
        ballots: those that were counted.
        similarities: how alike the answers are, in the voters' order.
        bonds: what holds each two answers together or apart, in the same order.
        effective_votes: independent votes that these are worth.
        rho: how voters' errors correlate; None: not known, taken as 0.
        notes: what else belongs to the trail.
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
    additions: tuple[AddedSentence, ...] = ()
    disputed: tuple[AddedSentence, ...] = ()

    def cautious(self) -> "ConsensusResult":
        """Return it as one that claims nothing: asking again did not help."""
        text = cautious_answer(self.decision, self.voters)
        return replace(
            self, text=text, how="cautious answer", level=ConfidenceLevel.FALLBACK, additions=(), disputed=()
        )


def deliberate(
    question: str,
    votes: Sequence[Vote],
    absences: Sequence[Absence],
    known: VoteContext,
    rules: VotingConfig | None = None,
) -> ConsensusResult:
    """Return the reply to a question on which these votes were given; there may be none.

    Unusable answers (empty, refusing, looping) count among all ballots and for no group, as do voters that failed or
    came late: one answer of three is no majority. Of copies one ballot counts. Voters that were stopped because the
    decision was certain count for nothing.

    Raises:
        InputError: an unknown rule, or two votes of the same voter.
    """
    rules = rules or VotingConfig()
    votes = sorted(votes, key=lambda vote: vote.voter)
    texts = [vote.text for vote in votes]
    finals = [final_answer(text, question) for text in texts]
    similarities = compare(texts, known.embed)
    table = bonds(finals, similarities, rules.thresholds)
    qualities = judge_all(question, texts, [vote.finish_reason for vote in votes], similarities, known.embed, finals)
    classes = _classes(similarities, table, qualities)
    place = {index: number for number, members in enumerate(classes) for index in members}
    ballots = [Ballot(vote.voter, place.get(i), known.weight(vote.node).weight) for i, vote in enumerate(votes)]
    ballots += [Ballot(each.voter, None) for each in absences if each.counts]
    kept, copies = merge_copies(ballots, find_copies({vote.voter: vote.source for vote in votes}))
    decision = decide(kept, rules.rule, rules.fallback)
    reasons = {each.voter: each.reason for each in copies}
    trails = tuple(
        VoterTrail(
            vote,
            finals[i],
            qualities[i],
            known.weight(vote.node),
            place.get(i),
            reasons.get(vote.voter) or _why_unusable(qualities[i]),
        )
        for i, vote in enumerate(votes)
    )
    signals = _signals(decision, trails, similarities)
    confidence = confidence_of(signals, known.model, known.question_type, known.calibrations)
    leader_share = signals.vote_share
    level = _level(decision, confidence, rules)
    text, how = _reply(level, decision, trails, similarities)
    counted = [each.weight for each in kept if each.group is not None]
    reply = ConsensusResult(
        question=question,
        text=text,
        how=how,
        level=level,
        confidence=confidence,
        conflict=leader_share <= CONFLICT_SHARE,
        disagreement=1 - leader_share,
        decision=decision,
        groups=tuple(tuple(votes[index].voter for index in members) for members in classes),
        voters=trails,
        absences=tuple(absences),
        ballots=kept,
        similarities=similarities,
        bonds=table,
        effective_votes=effective_votes(counted, known.rho if known.rho is not None else UNKNOWN_RHO),
        rho=known.rho,
        notes=_notes(similarities, copies, known),
    )
    return _merged(reply) if rules.merge else reply


def is_certain(
    reply: ConsensusResult,
    to_come: Mapping[str, str],
    known: VoteContext,
    rules: VotingConfig | None = None,
    stop: StopRule = ONLY_CERTAIN,
) -> bool:
    """Tell whether votes to come, their nodes by the voters' names, are a waste after those of a reply."""
    rules = rules or VotingConfig()
    missing = [Ballot(voter, None, known.weight(node).weight) for voter, node in to_come.items()]
    return reason_to_stop(reply.ballots, missing, stop, rules.rule, rules.fallback) is not None


def best_match(indices: Sequence[int], qualities: Sequence[Quality], similarities: Similarities) -> int:
    """Return which of some answers stands for them: the most like all of them times its quality, of equal ones any."""
    alike = similarities.values_NN[list(indices)][:, list(indices)].mean(axis=1)
    scores = [float(value) * qualities[index].value for value, index in zip(alike, indices, strict=True)]
    return max(zip(scores, [-index for index in indices], strict=True))[1] * -1


def _classes(
    similarities: Similarities, table: Sequence[Sequence[Bond]], qualities: Sequence[Quality]
) -> tuple[tuple[int, ...], ...]:
    """Return the classes of answers that say the same, without those that should have no vote."""
    usable = [[index for index in members if qualities[index].usable] for members in group(similarities, table)]
    return tuple(sorted((tuple(each) for each in usable if each), key=lambda each: (-len(each), each[0])))


def _why_unusable(quality: Quality) -> str:
    if quality.usable:
        return ""
    return "; ".join(f"{fault.name}: {fault.evidence}" for fault in quality.faults)


def _signals(decision: Decision, trails: Sequence[VoterTrail], similarities: Similarities) -> Signals:
    """Return what the vote shows of its leader."""
    leader = decision.standings[0] if decision.standings else None
    members = [index for index, each in enumerate(trails) if leader is not None and each.vote.voter in leader.voters]
    logprobs = [trails[index].vote.mean_logprob for index in members]
    known = [each for each in logprobs if each is not None]
    alike = similarities.values_NN[members][:, members]
    return Signals.of(
        decision,
        mean_logprob=fmean(known) if known and len(known) == len(logprobs) else None,
        similarity=float(alike.mean()) if members else None,
        tokens=fmean(trails[index].vote.new_tokens for index in members) if members else None,
    )


def _level(decision: Decision, confidence: Confidence, rules: VotingConfig) -> ConfidenceLevel:
    """Return what follows; where nothing is calibrated, a winner by the rule is an answer with a note, and no more."""
    if not decision.standings:
        return ConfidenceLevel.FALLBACK
    if confidence.probability is not None:
        return rules.levels.of(confidence.probability)
    won = decision.winner is not None and decision.rule == rules.rule
    return ConfidenceLevel.NOTE if won else ConfidenceLevel.RECOMPUTE


def _reply(
    level: ConfidenceLevel, decision: Decision, trails: Sequence[VoterTrail], similarities: Similarities
) -> tuple[str, str]:
    """Return what the client is told, and how it was found."""
    if level is ConfidenceLevel.FALLBACK or decision.winner is None:
        return cautious_answer(decision, trails), "cautious answer"
    members = [index for index, each in enumerate(trails) if each.group == decision.winner]
    chosen = best_match(members, [each.quality for each in trails], similarities)
    leads = "winning" if level in (ConfidenceLevel.ANSWER, ConfidenceLevel.NOTE) else "leading"
    vote = trails[chosen].vote
    return without_thoughts(vote.text).strip(), f"best match of the {leads} group: {vote.voter}"


def _merged(reply: ConsensusResult) -> ConsensusResult:
    """Return a reply whose text has what others of the winning group add; of a short answer it stays as it is."""
    if reply.level is ConfidenceLevel.FALLBACK or reply.decision.winner is None:
        return reply
    members = [index for index, each in enumerate(reply.voters) if each.group == reply.decision.winner]
    best = best_match(members, [each.quality for each in reply.voters], reply.similarities)
    if reply.voters[best].final.kind != PROSE:
        return reply
    texts = [each.vote.text if each.quality.usable else "" for each in reply.voters]
    merged = merge(best, members, texts)
    how = f"{reply.how}, and what others add" if merged.added else reply.how
    return replace(reply, text=merged.text, how=how, additions=merged.added, disputed=merged.disputed)


def cautious_answer(decision: Decision, trails: Sequence[VoterTrail]) -> str:
    """Return a text that claims nothing: what was said, and by how many of those that were asked."""
    if not decision.standings:
        return f"No answer: none of the {decision.ballots} voters that were asked gave one that can be used."
    lines = []
    for standing in decision.standings:
        said = next(each for each in trails if each.vote.voter in standing.voters)
        lines.append(f"- {_shortened(said)} ({len(standing.voters)} of {decision.ballots})")
    return "There is no certain answer. These were given:\n" + "\n".join(lines)


def _shortened(trail: VoterTrail) -> str:
    text = " ".join((trail.final.text or trail.vote.text).split())
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS].rstrip()} …"


def _notes(similarities: Similarities, copies: Sequence[DroppedBallot], known: VoteContext) -> tuple[str, ...]:
    notes = list(similarities.notes)
    if copies:
        notes.append(f"{len(copies)} ballots are copies by construction and do not count")
    if known.rho is None:
        notes.append("how the voters' errors correlate is not known: they count as independent")
    return tuple(notes)
