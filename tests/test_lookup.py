"""Drafts come from where the last tokens stood before, and are as long as pays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.pipeline.lookup import Lookup, StepTime, Texts, draft_lengths


def answer_to(*prompt: int) -> Lookup:
    return Texts(prompt).begin()


@pytest.mark.parametrize(
    ("prompt", "answer", "drafted"),
    [
        ((1, 2, 3, 4, 5), [7, 2, 3], [4, 5, 7]),  # in the prompt
        ((9,), [1, 2, 3, 8, 1, 2], [3, 8, 1]),  # in the answer
        ((1, 2, 3, 5, 2, 4), [1, 2], [3, 5, 2]),  # the longest match, and not the newest place
        ((5, 1, 2, 3, 6, 1, 2, 4), [1, 2], [4, 1, 2]),  # the newest place of equal matches
        ((9,), [4, 4], []),  # a pair that stands nowhere else
        ((9,), [4, 4, 4], [4, 4, 4]),  # what repeats itself continues
        ((9,), [1, 2, 1, 2], [1, 2, 1]),
        ((1,), [5], []),
    ],
)
def test_drafts_follow_the_same_tokens_elsewhere(prompt: tuple[int, ...], answer: list[int], drafted: list[int]):
    assert answer_to(*prompt).draft(answer, 3)[0] == drafted
    step_by_step = answer_to(*prompt)
    for count in range(len(answer)):
        step_by_step.draft(answer[:count], 3)
    assert step_by_step.draft(answer, 3)[0] == drafted


def test_siblings_draft_from_each_other():
    texts = Texts((1, 2))
    first, second = texts.begin(), texts.begin()
    first.draft([5, 6, 7, 8], 4)
    assert second.draft([5, 6], 4)[0] == [7, 8]
    assert second.draft([5, 6, 9, 6, 7], 4)[0] == [8]


@given(prompt=st.lists(st.integers(0, 2), min_size=1, max_size=20), answer=st.lists(st.integers(0, 2), max_size=30))
def test_a_draft_is_what_stood_behind_the_longest_match_of_the_newest_places(prompt: list[int], answer: list[int]):
    text = [*prompt, *answer]
    drafted, _ = answer_to(*prompt).draft(answer, 1)
    followers = {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
    assert bool(drafted) == any(pair == tuple(text[-2:]) for pair in (follower[:2] for follower in followers))
    assert not drafted or (*text[-2:], *drafted) in followers


def test_the_chance_of_a_draft_follows_how_often_drafts_were_right():
    lookup, tokens = answer_to(1, 2, 3, 1, 2, 3), [1, 2, 3]
    before = lookup.draft(tokens, 4)[1]
    for _ in range(20):
        tokens.append(tokens[-3])
        chance = lookup.draft(tokens, 4)[1]
    assert before == 0.5 and chance > 0.9
    for wrong in range(100, 140):
        tokens += [wrong, 1, 2]
        chance = lookup.draft(tokens, 4)[1]
    assert chance < 0.1


def test_the_time_of_a_step_is_a_line_through_the_steps():
    time = StepTime()
    assert time(3) / time(1) == pytest.approx(1.1), "before the first step"
    for rows in [1, 2, 3, 4, 8, 16] * 20:
        time.observe(rows, 0.01 + 0.002 * rows)
    assert time(1) == pytest.approx(0.012, rel=0.02) and time(9) == pytest.approx(0.028, rel=0.02)
    usual = time(4)
    time.observe(4, 60.0)
    assert time(4) < 1.3 * usual, "a step that was held up hardly counts"


def test_drafts_are_as_long_as_they_raise_the_tokens_per_second():
    def cheap(rows: int) -> float:
        return 1 + 0.02 * rows

    def dear(rows: int) -> float:
        return 0.1 + rows

    assert draft_lengths([0.9, 0.1], [15, 15], 62, dear) == [0, 0]
    likely, unlikely = draft_lengths([0.9, 0.3], [15, 15], 62, cheap)
    assert 15 >= likely > unlikely >= 1
    assert draft_lengths([0.99, 0.99], [15, 3], 62, cheap) == [15, 3]
    assert sum(draft_lengths([0.9, 0.8], [15, 15], 4, cheap)) == 4
    best = max(range(16), key=lambda n: sum(0.8**i for i in range(n + 1)) / cheap(1 + n))
    assert draft_lengths([0.8], [15], 63, cheap) == [best]
