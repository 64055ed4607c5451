"""Answers that agree become one: only what several say is added, nothing twice, nothing that is denied."""

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


def test_nothing_is_said_twice_in_other_words() -> None:
    texts = [f"{RAIN} {VENTS}", f"{RAIN} {VENTS_TOO}", f"{VENTS_TOO}"]
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


def test_what_the_best_answer_denies_is_never_added() -> None:
    best = f"{RAIN} Table salt does not dissolve in oil at all."
    said = "Table salt does dissolve in oil quickly and well."
    assert merge(0, [0, 1, 2], [best, f"{RAIN} {said}", f"{RIVERS} {said}"]).text == best


def test_sentences_that_hang_on_another_and_fragments_are_not_taken() -> None:
    texts = [
        RAIN,
        f"{RAIN} This takes many millions of years there.",
        f"{RIVERS} This takes many millions of years there.",
    ]
    assert merge(0, [0, 1, 2], texts).text == RAIN
    assert whole_sentences("- One item here.\n2) Version 3.5 is out. And a fragment") == [
        "One item here.",
        "Version 3.5 is out.",
    ]


def test_thoughts_are_left_out() -> None:
    texts = [f"<think>{SUN}</think>{RAIN}", f"<think>{SUN}</think>{RAIN}", f"<think>{SUN}</think>{RAIN}"]
    assert merge(0, [0, 1, 2], texts).text == RAIN


WORDS = st.sampled_from([RAIN, RIVERS, VENTS, VENTS_TOO, SUN, "Why?", "It is so.", "So be it"])


@given(st.lists(st.lists(WORDS, max_size=4).map(" ".join), min_size=1, max_size=6))
def test_the_best_answer_stays_whole_and_all_that_is_added_was_said(texts: list[str]) -> None:
    merged = merge(0, range(len(texts)), texts)
    assert merged.text.startswith(texts[0].strip())
    assert len(merged.added) <= MOST_ADDED
    for each in merged.added:
        assert len(each.said_by) >= 2 and 0 not in each.said_by
        assert any(each.sentence in texts[index] for index in each.said_by)
    assert merge(0, range(len(texts)), texts) == merged
