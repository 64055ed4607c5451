"""What is right and what only looks right."""

from pathlib import Path

import pytest
from tables import parts, table

from qubic_lab.evals.questions import Question, committed_questions, load_questions, read_objects
from qubic_lab.evals.scoring import cut_text, is_checkable, is_right, judge, judged_text

JUDGED = Path(__file__).parents[1] / "data" / "questions" / "judged.jsonl"
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
Thursday → 1 March is a Wednesday, so it is a Thursday. | Yes → Yes, it is. | 51 → The answer is 51 (17 * 3). |
51 → The answer is 51, since 17 * 3 = 51 and not 3. |
51 → They took 51 dollars, which is more than 40. | 60 → They left **60** of them, and took 3. |
180分钟 → 3小時 | 180 minutes → 3 hours | 2 h 15 min → 135 minutes | 3小时 → 180分鐘 | 90秒 → 1.5分鐘 | 2天 → 48小時 |
90分钟 → 1小时30分 | 150分钟 → 两个半小时 | 30000 → 三萬 | 30000 → 每月1万件，三个月就是三万件。 | 2500 → 兩千五 |
120000000 → 一億兩千萬 | 86400秒 → 8萬6400秒 | 1/3 → 33.3% | 2023-04-10 → It is April 10. |
No → Absolutely not! | Yes → Of course it is.
"""

WRONG = r"""
12 → 112 | 12 → 120 | 12 → 1.2 | 12 → 12.4 | 12 → x = 13 | 12 → 12 × 3 = 36 | 12 → -12 |
12 → The answer is 13. Then 13 - 1 = 12. | 12 → | 12 → <think>12 | 12 → <think>12</think> |
12 → <think>It is 12.</think>13 | 12 → 12, so \boxed{13} | 13 → The answer is 12. Not 13. | 5 → -5 | 3 GB → 3 MB |
€75 → $75 | 16% → 16 °C | 1/9 → 1/8 | 1/9 → 9 | 216.6 → 217 | 6.0 → 6.01 | 10:30 → 10:03 | 10:30 → 10:30 pm |
2070-08-21 → 2070-08-12 | 2 and 4 → 4 and 2 | 2 and 4 → 4 | [1, 9, 25] → [1, 9, 25, 49] | [1, 9, 25] → [9, 1, 25] |
x^2 → x^2 + 7 | Ana → Banana | Venus → It is not Venus. | W → We know: w | O(log n) → O(n log n) |
Thursday → Thursday? No, Friday. | Yes → No. | 51 → They took 48, not 51. | 51 → It is 51 or 54. |
51 → The answer is 3, because 17 * 3 = 51. | 180分钟 → 3天 | 180 minutes → 180 s | 30000 → 三千 | 2500 → 兩百五 |
Canberra → Canberra or Sydney. | Canberra → Many think of Canberra, but it is Sydney.
"""


def ask(reference: str, question: str = "?", kind: str = "") -> Question:
    return Question("q", question, reference, kind)


NARROW_SPACES = "299,792,458 m/s → 299\N{NARROW NO-BREAK SPACE}792\N{NARROW NO-BREAK SPACE}458 m/s"
MARKED = "51 → 17 * 3 = <<17*3=51>>51\n#### 51\nThat took 3 steps."


@pytest.mark.parametrize(
    ("row", "right"),
    [(row, True) for row in [*table(RIGHT), NARROW_SPACES, MARKED]] + [(row, False) for row in table(WRONG)],
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


SHEEP = "A farmer has 17 sheep and buys 8 more. Then 5 run away. How many sheep does he have?"


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("There are 20 left: 17 at first, 8 more, 5 gone.", True),
        ("He has 20 sheep after 5 of the 25 ran away.", True),
        ("20 sheep.\n\nThat is 17 and 8 less 5.", True),
        ("In the end 25 - 5 = 20 sheep are left of his 17.", True),
        ("He has 25 sheep, and 5 run away.", False),
        ("He has 25 in between, so 20 sheep are left.", True),
        ("Sheep in between: 25\nSheep left: 20", True),
    ],
)
def test_numbers_of_the_question_are_no_answer_beside_another(text: str, right: bool) -> None:
    assert is_right(ask("20", SHEEP), text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Speed is distance by time: 60 km/h. In 2.5 hours he covers 150 km.", True),
        ("1 km a minute", True),
        ("In 2.5 hours he covers 150 km.", False),
    ],
)
def test_a_number_of_another_dimension_is_no_answer(text: str, right: bool) -> None:
    assert is_right(ask("60 km/h", "Sam drives 150 km in 2.5 hours. How fast?"), text) is right


def test_what_repeats_the_question_is_not_converted() -> None:
    question = ask("150 minutes", "How many minutes are 2.5 hours?")
    assert is_right(question, "There are 150 minutes in 2.5 hours.") and not is_right(question, "2.5 hours")


LONG_ANSWER = "(B) Somebody, who is not here, has closed the shutters"
LONG = f"Why is it dark?\n(A) The sun has set, so that no light comes in\n{LONG_ANSWER}"
GASES = "下列哪种气体最多？\n(A) 氧气\n(B) 氮气"


@pytest.mark.parametrize(
    ("question", "reference", "text", "right"),
    [
        (LONG, LONG_ANSWER, "B", True),
        (LONG, LONG_ANSWER, "Somebody, who is not here, has closed the shutters.", True),
        (LONG, LONG_ANSWER, "The sun has set, so that no light comes in.", False),
        (LONG, LONG_ANSWER, "The correct option is B, although A is possible.", True),
        (LONG, LONG_ANSWER, "I'd go with A because it is late. B is less likely.", False),
        (LONG, LONG_ANSWER, "A is wrong, since it is noon. Therefore, B.", True),
        (LONG, LONG_ANSWER, "Either A or B.", False),
        (LONG, "B", "(A)", False),
        (LONG, "B", "A person has closed them: option B", True),
        (GASES, "(B) 氮气", "選項B", True),
        (GASES, "(B) 氮气", "选项B", True),
        (GASES, "(B) 氮气", "答案是B", True),
        (GASES, "(B) 氮气", "應該選(B)。", True),
        (GASES, "(B) 氮气", "氮氣", True),
        (GASES, "(B) 氮气", "答案是A，不是B。", False),
        (GASES, "(B) 氮气", "正确选项是B", True),
        (GASES, "(B) 氮气", "A、C都不对，应该是B", True),
        (PLANETS, "(B) Venus", "Venus is slow, even slower than Mercury.", True),
        (PLANETS, "(B) Venus", "I think it's B", True),
        (PLANETS, "(A) Mercury", "A is correct. B and C are wrong.", True),
        (PLANETS, "(B) Venus", "Neither A nor C; it's B!", True),
        (PLANETS, "(B) Venus", "The slowest planet? Venus.", True),
        (PLANETS, "(B) Venus", '{"answer": "B"}', True),
        (PLANETS, "(B) Venus", "Sir A. B. Smith says it is Mars.", False),
    ],
)
def test_options_of_any_length_are_judged(question: str, reference: str, text: str, right: bool) -> None:
    assert judge(Question("q", question, reference), text) is right


def test_more_than_eight_options_have_letters_too() -> None:
    listed = "\n".join(f"({letter}) {number}" for letter, number in zip("ABCDEFGHIJKLM", range(13), strict=True))
    question = Question("q", f"Which?\n{listed}", "(K) 10")
    assert is_right(question, "The answer is (K).") and is_right(question, "K")
    assert not is_right(question, "L") and not is_right(question, "(A)")


CUT = r"""
12 → The answer is 12. To check this, we | 12 → So it is \boxed{12}, which | 12 → They cost 12 dollars. To see why |
Canberra → It is Canberra. The city lies | (B) Venus → (B) | (B) Venus → (B) Ven
"""
UNCONCLUDED = r"""
12 → First, 3 × 4 is 12. Then | 12 → The answer is 12 | 12 → <think>The answer is 12. | 12 → \boxed{12 |
13 → The answer is 12. So 13 | (B) Venus → B | (B) Venus → Let us see: (B
"""


@pytest.mark.parametrize(
    ("row", "right"), [(row, True) for row in table(CUT)] + [(row, False) for row in table(UNCONCLUDED)]
)
def test_of_a_cut_answer_what_it_had_concluded_counts(row: str, right: bool) -> None:
    reference, text = parts(row)
    question = PLANETS if reference == "(B) Venus" else "How many dollars do 4 pens cost?"
    assert judge(ask(reference, "Which city is it?" if reference == "Canberra" else question), text, cut=True) is right


def test_what_cannot_be_judged_is_counted_with_its_reason() -> None:
    long = "one two three four five six seven"
    asked = [ask("12"), ask(long), ask(long), ask("", kind="creative"), Question("m", LONG, LONG_ANSWER)]
    assert judged_text(asked) == (
        "2 of 5 judged; the rest, because: 2 × the reference is a text of more than 6 words, "
        "1 × creative, without a right answer"
    )
    assert judged_text(asked[:1]) == "1 of 1 judged"
    assert cut_text(0.05, 48) == "5% of the answers were cut at 48 tokens"
    assert "raise the limit (--new-tokens)" in cut_text(0.31, 48)


def test_scoring_agrees_with_answers_judged_by_hand() -> None:
    rows = [fields for _, fields in read_objects(JUDGED, "judged answers")]
    differing = [
        (row["answer"], row["text"])
        for row in rows
        if judge(Question("q", row["question"], row["answer"]), row["text"]) is not row["right"]
    ]
    assert len(rows) == 100 and 0.3 < sum(row["right"] for row in rows) / len(rows) < 0.7
    assert len(differing) <= 2, differing
