"""Answers that agree become one: only what several say is added, nothing twice, nothing that is denied."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qubic_lab.consensus.merging import MOST_ADDED, merge, whole_sentences

RAIN = "Rain dissolves minerals from rocks."
RIVERS = "Rivers carry the dissolved salts into the ocean."
VENTS = "Hydrothermal vents on the sea floor release further minerals."
VENTS_TOO = "Further minerals are released by hydrothermal vents on the sea floor."
SUN = "Evaporation leaves the salt behind."


def test_what_two_others_say_is_added_and_what_one_says_is_not() -> None:
    merged = merge(0, [0, 1, 2], [f"{RAIN} {RIVERS}", f"{RAIN} {VENTS}", f"{RIVERS} {VENTS_TOO} {SUN}"])
    assert merged.text == f"{RAIN} {RIVERS} {VENTS}"
    assert [(each.sentence, each.said_by) for each in merged.added] == [(VENTS, (1, 2))]
    assert merged.disputed == ()


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
    assert merge(0, [0, 1, 2], texts).text == texts[0]


def test_what_as_many_deny_is_left_out_and_told() -> None:
    rising = "The salt content of the oceans is rising today."
    falling = "The salt content of the oceans is falling today."
    agreeing = [RAIN, f"{RAIN} {rising}", f"{RAIN} {rising}"]
    merged = merge(0, [0, 1, 2], [*agreeing, falling, falling])
    assert merged.text == RAIN
    assert [(each.said_by, each.denied_by) for each in merged.disputed] == [((1, 2), (3, 4))]
    one = merge(0, [0, 1, 2], [*agreeing, falling])
    assert one.text == f"{RAIN} {rising}" and one.added[0].denied_by == (3,)


def test_thoughts_and_fragments_are_left_out() -> None:
    assert merge(0, [0, 1, 2], [f"<think>{SUN}</think>{RAIN}"] * 3).text == RAIN
    found = whole_sentences("- One item here.\n2) Version 3.5 is out. And a fragment")
    assert found == ["One item here.", "Version 3.5 is out."]


WORDS = st.sampled_from([RAIN, RIVERS, VENTS, VENTS_TOO, SUN, "Why?", "It is so.", "So be it"])


@given(st.lists(st.lists(WORDS, max_size=4).map(" ".join), min_size=1, max_size=6))
def test_the_best_answer_stays_whole_and_all_that_is_added_was_said(texts: list[str]) -> None:
    merged = merge(0, range(len(texts)), texts)
    assert merged.text.startswith(texts[0].strip())
    assert len(merged.added) <= MOST_ADDED
    for each in merged.added:
        assert len(each.said_by) >= 2 and 0 not in each.said_by
        assert any(each.sentence in texts[index] for index in each.said_by)
