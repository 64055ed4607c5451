"""What is right and what only looks right."""

import pytest
from tables import parts, table

from qubic_lab.evals.questions import Question, committed_questions, load_questions
from qubic_lab.evals.scoring import is_checkable, is_right

PLANETS = "Which planet turns slowest? (A) Mercury (B) Venus (C) Mars"
RACE = "Ana finished behind Chen, and Boris behind Ana. Who came second?"


RIGHT = r"""
12 → x = 12 | 12 → First I thought 13, but 6 × 2 = 12. | 12 → There are twelve. |
12 → So \(x\) is \boxed{12}, not 13. | 12 → <think>13? 14?</think>12 | 12 → The answer is 12. In 1990 it was 15. |
12 → The answer is not 13. It is 12. | 12 → **Answer:** 12.0 | -818 → It is −818. | -818 → It is minus 818. |
299,792,458 m/s → About 3: exactly 299792458 metres per second. | 26200 grams → 26,200 g | 1/9 → \frac{1}{9} |
1/9 → about 0.111 | 216.6 litres → 216.60 liters are left. | 3 GB → three gigabytes | €75 → 75 euros |
16% → The concentration is 16\%. | 212 °F → 212 degrees Fahrenheit | 10:30 → They meet at 10:30 AM. |
17 minutes 30 seconds → It takes 17 min 30 s. | 2 and 4 → It returns 2 and 4. | 2070-08-21 → It is 2070-08-21. |
2070-08-21 → It is the 21st of August 2070. | 1648 → The peace was signed on 24 October 1648. |
[1, 9, 25] → It prints [0, 1] first? No: [1,9,25] | 429 Too Many Requests → HTTP 429 | The Hague → It is the hague. |
Gabriel García Márquez → gabriel garcia marquez wrote it | W → The symbol is W. | O(log n) → $O(\log n)$ |
x^2 - 9 → It is (x - 3)(x + 3). | git revert → Use `git revert` for that. |
Thursday → 1 March is a Wednesday, so it is a Thursday. | Yes → Yes, it is.
"""

WRONG = r"""
12 → 112 | 12 → 120 | 12 → 1.2 | 12 → 12.4 | 12 → x = 13 | 12 → 12 × 3 = 36 | 12 → -12 |
12 → The answer is 13. Then 13 - 1 = 12. | 12 → | 12 → <think>12 | 12 → <think>12</think> |
12 → <think>It is 12.</think>13 | 12 → 12, so \boxed{13} | 13 → The answer is 12. Not 13. | 5 → -5 | 3 GB → 3 MB |
€75 → $75 | 16% → 16 °C | 1/9 → 1/8 | 1/9 → 9 | 216.6 → 217 | 6.0 → 6.01 | 10:30 → 10:03 | 10:30 → 10:30 pm |
2070-08-21 → 2070-08-12 | 2 and 4 → 4 and 2 | 2 and 4 → 4 | [1, 9, 25] → [1, 9, 25, 49] | [1, 9, 25] → [9, 1, 25] |
x^2 → x^2 + 7 | Ana → Banana | Venus → It is not Venus. | W → We know: w | O(log n) → O(n log n) |
Thursday → Thursday? No, Friday. | Yes → No.
"""


def ask(reference: str, question: str = "?", kind: str = "") -> Question:
    return Question("q", question, reference, kind)


NARROW_SPACES = "299,792,458 m/s → 299\N{NARROW NO-BREAK SPACE}792\N{NARROW NO-BREAK SPACE}458 m/s"


@pytest.mark.parametrize(
    ("row", "right"), [(row, True) for row in [*table(RIGHT), NARROW_SPACES]] + [(row, False) for row in table(WRONG)]
)
def test_what_is_right_and_what_only_looks_right(row: str, right: bool) -> None:
    reference, text = parts(row)
    assert is_right(ask(reference), text) is right


RIGHT_OPTIONS = r"""
(B) | B | B) Venus | The answer is B, as it turns backwards. | Venus takes longest. | \boxed{\text{B}}
"""
WRONG_OPTIONS = "(A) Mercury | Mercury and Venus and Mars | (A) Mercury (B) Venus (C) Mars | All of them."


@pytest.mark.parametrize(
    ("text", "right"),
    [(text, True) for text in table(RIGHT_OPTIONS)] + [(text, False) for text in table(WRONG_OPTIONS)],
)
def test_options(text: str, right: bool) -> None:
    assert is_right(ask("(B) Venus", PLANETS), text) is right


def test_a_name_that_the_question_gives_away_must_be_the_one_concluded() -> None:
    assert is_right(ask("Ana", RACE), "Chen was first and Boris last, so it is Ana.")
    assert not is_right(ask("Ana", RACE), "Ana finished behind Chen, so it is Chen.")
    assert not is_right(ask("Ana", RACE), "Ana, Boris, Chen")


def test_what_cannot_be_checked_is_known() -> None:
    questions = load_questions(committed_questions())
    unchecked = [question.id for question in questions if not is_checkable(question)]
    assert len(unchecked) == 17
    assert {id for id in unchecked if not id.startswith("creative")} == {"technical-10"}
