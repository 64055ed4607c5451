"""From votes to a reply: who wins, what is told at which level, and that nothing depends on the order of votes."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.api.vote_page import render_vote
from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.bands import ConfidenceLevel, find_bands
from qubic_lab.consensus.calibrators import Logistic
from qubic_lab.consensus.confidence import SignalCurve, VoteCalibration
from qubic_lab.consensus.merging import MOST_ADDED, MergedAnswer, merge, whole_sentences
from qubic_lab.consensus.similarity import SimilarityThresholds
from qubic_lab.consensus.voting import Absence, AbsenceReason, AnswerSource, Vote
from qubic_lab.consensus.weights import WeightParts
from qubic_lab.core import SamplingParams
from qubic_lab.votes.trail import trail_of

QUESTION = "What is 5 + 7?"


def vote(voter: str, text: str, seed: int | None = None, temperature: float = 0.7) -> Vote:
    sampling = SamplingParams(temperature=temperature, seed=ord(voter[0]) if seed is None else seed)
    return Vote(voter, voter, "m", AnswerSource("hash", QUESTION, sampling), text, "stop", len(text.split()), 1.0, -0.1)


def votes_of(*texts: str) -> list[Vote]:
    return [vote(f"v{number}", text, seed=number) for number, text in enumerate(texts)]


def calibrated() -> VoteCalibration:
    """A calibration by the vote share alone: a third of the ballots is mostly wrong, all of them mostly right."""
    shares = np.array([[0.33], [1.0]]).repeat(40, axis=0)
    right = np.array([0.0] * 36 + [1.0] * 4 + [0.0] * 2 + [1.0] * 38)
    curve = SignalCurve("logistic", ("vote_share",), Logistic.fit(shares, right))
    scores = curve.curve(shares)
    bands = find_bands(scores, right, scores, right)
    time = datetime(2026, 11, 24, tzinfo=UTC)
    return VoteCalibration("hash", "any", curve, curve, bands, (), "0" * 64, 80, 80, 42, (3,), time)


def reply_to(
    votes: Sequence[Vote], *absences: Absence, known: VoteContext | None = None, rules: VotingConfig | None = None
) -> Consensus:
    return deliberate(QUESTION, votes, absences, known or VoteContext(), rules or VotingConfig())


def test_the_majority_wins_and_its_answer_is_given() -> None:
    reply = reply_to(votes_of("The answer is 12.", "5 + 7 = 12", "It is 13."))
    assert (reply.groups, reply.decision.winner) == ((("v0", "v1"), ("v2",)), 0)
    assert reply.text in ("The answer is 12.", "5 + 7 = 12")
    assert (reply.level, reply.confidence.probability, reply.conflict) == (ConfidenceLevel.NOTE, None, False)
    assert reply.disagreement == pytest.approx(1 / 3)
    assert "uncalibrated" in reply.confidence.note


def test_missing_voters_count_unless_they_were_not_needed() -> None:
    absences = (Absence("late", AbsenceReason.LATE, "after 5 s"), Absence("lost", AbsenceReason.FAILED, "gone"))
    one_of_three = reply_to(votes_of("It is 13."), *absences)
    assert (one_of_three.level, one_of_three.decision.ballots) == (ConfidenceLevel.RECOMPUTE, 3)
    assert one_of_three.conflict
    certain = reply_to(
        votes_of("12", "12"), Absence("v9", AbsenceReason.STOPPED, "no ballots to come can change the decision")
    )
    assert (certain.level, certain.decision.ballots) == (ConfidenceLevel.NOTE, 2)


def test_of_a_cut_answer_the_finished_conclusion_has_the_vote() -> None:
    texts = ("The answer is 12. Again, the answer is 1", "First, 5 and 5 is 10. So 5 + 7 = 1")
    cut = [replace(each, finish_reason="length") for each in votes_of(*texts)]
    reply = reply_to([*cut, vote("w", "12")])
    assert reply.groups == (("v0", "w"),)
    assert "truncated" in reply.voters[1].dropped


def test_unusable_answers_have_no_vote_and_say_why_and_where_all_are_nothing_is_claimed() -> None:
    reply = reply_to([*votes_of("The answer is 12."), vote("w", ""), vote("x", "I'm sorry, but I cannot answer that.")])
    empty, refusing = (next(each for each in reply.voters if each.vote.voter == voter) for voter in "wx")
    assert (reply.groups, reply.decision.ballots, empty.group) == ((("v0",),), 3, None)
    assert "empty" in empty.dropped and "refusing" in refusing.dropped
    for votes in ([], [vote("w", ""), vote("x", "  ")]):
        reply = reply_to(votes, Absence("y", AbsenceReason.LATE, "after 5 s"))
        assert (reply.level, reply.effective_votes) == (ConfidenceLevel.FALLBACK, 0)
        assert reply.text.startswith("No answer")


def test_a_calibration_decides_the_level_and_a_cautious_answer_lists_what_was_said() -> None:
    known = VoteContext(calibrations=(calibrated(),), model="hash")
    reply = reply_to(votes_of("12", "12", "12"), known=known)
    assert reply.level is ConfidenceLevel.ANSWER
    assert reply.confidence.probability > 0.85
    cautious = reply_to(votes_of("It is 12.", "It is 13.", "It is 14."), known=known)
    assert (cautious.level, cautious.how) == (ConfidenceLevel.FALLBACK, "cautious answer")
    assert all(f"It is {number}. (1 of 3)" in cautious.text for number in (12, 13, 14))
    other_model = reply_to(votes_of("12", "12", "12"), known=replace(known, model="other"))
    assert other_model.confidence.probability is None


def test_greedy_copies_are_one_vote() -> None:
    copies = [vote(name, "It is 13.", temperature=0.0, seed=number) for number, name in enumerate("abc")]
    reply = reply_to([*copies, *votes_of("12", "12")])
    assert (reply.decision.ballots, reply.text) == (3, "12")
    assert sum("copy" in each.dropped for each in reply.voters) == 2


def test_weights_count_where_the_rule_says_so() -> None:
    heavy, light = WeightParts(0.9, 0.9, 1.0, 0.9), WeightParts(0.1, 0.1, 0.1, 0.0)
    known = VoteContext(weights={"v0": heavy, "v1": light, "v2": light})
    reply = reply_to(votes_of("It is 12.", "It is 13.", "It is 13."), known=known, rules=VotingConfig("weighted"))
    assert reply.text == "It is 12."


def test_the_order_of_votes_changes_nothing() -> None:
    votes = [*votes_of("It is 12.", "12", "13", "13", "Twelve is the answer: 12"), vote("w", "")]
    whole = json.dumps(trail_of(reply_to(votes)), sort_keys=True, default=str)
    for seed in range(5):
        shuffled = random.Random(seed).sample(votes, len(votes))
        assert json.dumps(trail_of(reply_to(shuffled)), sort_keys=True, default=str) == whole


def test_a_page_shows_all_of_it_and_nothing_that_was_said_is_taken_for_markup() -> None:
    reply = reply_to(
        [*votes_of("It is 12.", "<script>alert(12)</script> 12"), vote("w", "")],
        Absence("y", AbsenceReason.LATE, "after 5 s"),
    )
    trail = json.loads(json.dumps(trail_of(reply)))
    page = render_vote("0" * 32, trail)
    assert "<script>" not in page
    assert page.count("<rect x=") == 9
    for text in (QUESTION, "v0", "v1", "late: after 5 s", "uncalibrated"):
        assert text.replace("'", "&#39;") in page


# --- Explanations: only what several say is added to the best one, nothing twice, nothing that is denied


RAIN = "Rain dissolves minerals from rocks."
RIVERS = "Rivers carry the dissolved salts into the ocean."
VENTS = "Hydrothermal vents on the sea floor release further minerals."
VENTS_TOO = "Further minerals are released by hydrothermal vents on the sea floor."
SUN = "Evaporation leaves the salt behind."
WHY = "Why is the sea salty?"
SALT = "Rain dissolves minerals from the rocks of the land, and rivers carry these salts into the sea year after year"


def test_an_explanation_that_won_can_be_given_with_what_others_add() -> None:
    texts = (f"{SALT}.", f"{SALT}. {VENTS}", f"{SALT}. {VENTS}", f"{SALT}.", f"{SALT}.")
    votes, alike = votes_of(*texts), SimilarityThresholds(0.3, 0.3)
    best, merged = (
        deliberate(WHY, votes, (), VoteContext(), VotingConfig(merge=merge, thresholds=alike))
        for merge in (False, True)
    )
    assert len(best.groups) == 1 and best.additions == () and VENTS not in best.text
    assert merged.text == f"{best.text} {VENTS}"
    assert merged.how == f"{best.how}, with sentences of others"
    trail = json.loads(json.dumps(trail_of(merged)))
    assert trail["additions"] == [{"sentence": VENTS, "said_by": ["v1", "v2"], "denied_by": []}]
    page, headline = render_vote("0" * 32, trail), "Sentences of other answers"
    assert headline in page and VENTS in page
    earlier_version = {name: value for name, value in trail.items() if name not in ("additions", "disputed")}
    assert headline not in render_vote("0" * 32, earlier_version)
    short = votes_of("The answer is 12.", f"5 + 7 = 12. {VENTS}", f"It is 12. {VENTS}")
    reply = reply_to(short, rules=VotingConfig(merge=True))
    assert reply.additions == () and reply.text == reply_to(short).text, "of a short answer nothing is merged"


def merge_all(texts: list[str], members: int | None = None) -> MergedAnswer:
    """Merge the answers of voters v0, v1, … into that of v0; those after the first `members` are of other groups."""
    said = {f"v{number}": text for number, text in enumerate(texts)}
    return merge("v0", list(said)[:members], said)


def test_what_two_others_say_is_added_and_what_one_says_thoughts_and_fragments_are_not() -> None:
    merged = merge_all([f"{RAIN} {RIVERS}", f"{RAIN} {VENTS}", f"{RIVERS} {VENTS_TOO} {SUN}"])
    assert merged.text == f"{RAIN} {RIVERS} {VENTS}"
    assert [(each.sentence, each.said_by) for each in merged.added] == [(VENTS, ("v1", "v2"))]
    assert merged.disputed == ()
    assert merge_all([f"<think>{SUN}</think>{RAIN}"] * 3).text == RAIN
    found = whole_sentences("- One item here.\n2) Version 3.5 is out. And a fragment")
    assert found == ["One item here.", "Version 3.5 is out."]


@pytest.mark.parametrize(
    "texts",
    [
        [f"{RAIN} {VENTS}", f"{RAIN} {VENTS_TOO}", VENTS_TOO],  # the same in other words
        [RAIN, *(f"{other} This takes many millions of years there." for other in (RAIN, RIVERS))],  # hangs on another
        [
            f"{RAIN} Table salt does not dissolve in oil at all.",
            *(f"{other} Table salt does dissolve in oil quickly and well." for other in (RAIN, RIVERS)),
        ],
    ],
)
def test_what_the_best_answer_says_or_denies_and_what_hangs_on_another_sentence_is_not_added(texts: list[str]) -> None:
    assert merge_all(texts).text == texts[0]


def test_what_as_many_deny_is_left_out_and_told() -> None:
    rising, falling = (f"The salt content of the oceans is {way} today." for way in ("rising", "falling"))
    agreeing = [RAIN, f"{RAIN} {rising}", f"{RAIN} {rising}"]
    merged = merge_all([*agreeing, falling, falling], 3)
    assert merged.text == RAIN
    assert [(each.said_by, each.denied_by) for each in merged.disputed] == [(("v1", "v2"), ("v3", "v4"))]
    one = merge_all([*agreeing, falling], 3)
    assert one.text == f"{RAIN} {rising}" and one.added[0].denied_by == ("v3",)


WORDS = st.sampled_from([RAIN, RIVERS, VENTS, VENTS_TOO, SUN, "Why?", "It is so.", "So be it"])


@given(st.lists(st.lists(WORDS, max_size=4).map(" ".join), min_size=1, max_size=6))
def test_the_best_answer_stays_whole_and_all_that_is_added_was_said(texts: list[str]) -> None:
    merged = merge_all(texts)
    assert merged.text.startswith(texts[0].strip())
    assert len(merged.added) <= MOST_ADDED
    for each in merged.added:
        assert len(each.said_by) >= 2 and "v0" not in each.said_by
        assert any(each.sentence in texts[int(voter[1:])] for voter in each.said_by)
