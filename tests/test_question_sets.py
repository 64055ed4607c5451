"""The written sets are right where a program can tell, and computed questions are solved again in another way."""

import contextlib
import datetime
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from tables import parts, table

from qubic_lab.errors import InputError
from qubic_lab.evals.generated import generated_questions, questions_for
from qubic_lab.evals.graded import FAMILIES, SORTS, graded_questions
from qubic_lab.evals.questions import KINDS, SETS, Question, committed_by_kind, committed_questions, load_questions
from qubic_lab.evals.scoring import is_checkable, is_right

GENERAL = load_questions(committed_questions())
WRITTEN = [question for name in SETS for question in load_questions(committed_questions(name))]
OWN_SETS = WRITTEN[len(GENERAL) :]
GOOD = '{"id": "a", "question": "q?", "answer": "x"}'
PRINTS = re.compile(r"What does this Python statement print\? (print\(.*\))$")


def test_the_committed_questions_cover_four_kinds() -> None:
    kinds = Counter(question.kind for question in GENERAL)
    assert set(kinds) == {question.kind for question in GENERAL[:8]} == set(KINDS), "a quick run sees every kind"
    assert min(kinds.values()) >= 12
    for kind in KINDS:
        questions = load_questions(committed_questions(kind))
        assert {question.kind for question in questions} == {kind}
        assert len(questions) >= (20 if kind == "creative" else 60)
        assert len(committed_by_kind(kind)) == len(questions) + 16
    asked = [*WRITTEN, *generated_questions(200), *graded_questions(200)]
    assert len({question.id for question in asked}) == len({question.question for question in asked}) == len(asked)
    assert all(is_checkable(each) == (each.kind != "creative") for each in OWN_SETS)


def test_kind_and_blank_lines_are_optional_but_the_file_is_not(tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    with pytest.raises(InputError, match="No such file"):
        load_questions(file)
    file.write_text(f"{GOOD}\n\n")
    [question] = load_questions(file)
    assert (question.id, question.kind) == ("a", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no questions"),
        ("{", r"q\.jsonl:1 is not valid JSON"),
        ("[]", "holds a list"),
        (f"{GOOD}\n{GOOD}", "id 'a' more than once"),
        (GOOD.replace("answer", "anwser"), "unknown field 'anwser': did you mean 'answer'"),
        (GOOD.replace('"x"', "3"), "answer is 3"),
        (GOOD.replace('"q?"', '" "'), r"q\.jsonl:1 has no question"),
        (f"{GOOD}\n" + '{"id": "b", "question": "q"}', r"q\.jsonl:2 has no answer"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        load_questions(file)


def test_written_questions_come_first_and_generated_ones_follow() -> None:
    everything = questions_for()
    assert everything[: len(GENERAL)] == GENERAL
    assert len(everything) == 128 == len({question.id for question in everything})
    assert (questions_for(8), questions_for(100)) == (GENERAL[:8], everything[:100])
    assert questions_for(100, seed=1)[64:] != everything[64:100]
    for limit in (0, 2065):
        with pytest.raises(InputError, match=f"limit is {limit}"):
            questions_for(limit)


@pytest.mark.parametrize(
    "question", [each for each in (*WRITTEN, *generated_questions(64)) if is_checkable(each)], ids=lambda each: each.id
)
def test_a_reference_answers_its_question_and_ignorance_does_not(question: Question) -> None:
    assert is_right(question, question.answer)
    assert is_right(question, f"<think>1, 2 or 3?</think>The answer is {question.answer}.")
    assert not is_right(question, "I do not know.")


def test_creative_questions_need_no_reference(tmp_path: Path) -> None:
    assert all(not each.answer and not is_checkable(each) for each in load_questions(committed_questions("creative")))
    file = tmp_path / "q.jsonl"
    file.write_text('{"id": "a", "kind": "creative", "question": "Sing."}')
    assert load_questions(file)[0].answer == ""


def test_what_python_prints_is_what_the_references_say() -> None:
    asked = {each.id: (found[1], each.answer) for each in OWN_SETS if (found := PRINTS.search(each.question))}
    assert len(asked) >= 25
    for id, (statement, answer) in asked.items():
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(statement, {})
        assert printed.getvalue() == f"{answer}\n", id


COMPUTED = """
analytical-43 → next(n for n in range(100) if n + (n - 1) + (n - 2) == 72) |
analytical-45 → next(3 * tim for tim in range(100) if tim + 3 * tim == 48) |
analytical-47 → sum(n % 2 == 0 for n in range(1, 26)) |
analytical-48 → (datetime.datetime(2026, 1, 1, 19, 45) + datetime.timedelta(minutes=110)).strftime("%H:%M") |
analytical-51 → next(cup for cup in range(23) if cup + (cup + 20) == 22) |
analytical-52 → sum(all(n % d for d in range(2, n)) for n in range(2, 20)) | analytical-53 → math.gcd(36, 60) |
analytical-54 → math.lcm(6, 8) | analytical-60 → math.factorial(7) // math.factorial(5) |
analytical-61 → 7**100 % 5 | analytical-62 → len(set(itertools.permutations("LEVEL"))) |
analytical-63 → math.comb(8, 3) | analytical-64 → next(x for x in range(100) if 3 * x + 7 == 2 * x + 19) |
analytical-66 → Fraction(sum(sum(toss) == 2 for toss in itertools.product([0, 1], repeat=4)), 16) |
analytical-67 → 4 * math.isqrt(196) | analytical-68 → sum(range(1, 61)) |
analytical-69 → 2000 * Fraction(105, 100) ** 2 |
analytical-70 → len(str(math.factorial(30))) - len(str(math.factorial(30)).rstrip("0")) |
analytical-71 → next(n for n in range(1, 61) if (n % 3, n % 4, n % 5) == (2, 3, 1)) | analytical-72 → (7 - 2) * 180 |
analytical-73 → f"{12 + Fraction(4 * 60 + 40, 56)}:00" | analytical-74 → 18 + 15 - (30 - 5) |
analytical-76 → next(b for b in range(1, 100) if Fraction(1, b) + Fraction(2, b) == Fraction(1, 6)) |
technical-41 → 0xFF | technical-57 → f"{13:b}" | technical-60 → 2 ** (32 - 24) |
technical-70 → int.from_bytes([0b11111110], signed=True) | technical-72 → Fraction(2 * 32 * 8 * 128 * 2, 1024)
"""


def test_references_that_are_easily_wrong_are_what_python_computes() -> None:
    questions = {question.id: question for question in OWN_SETS}
    names = {"Fraction": Fraction, "datetime": datetime, "itertools": itertools, "math": math}
    for id, expression in map(parts, table(COMPUTED)):
        assert is_right(questions[id], str(eval(expression, dict(names)))), id


def test_generated_questions_are_the_same_for_a_seed_and_never_twice() -> None:
    asked = generated_questions(800, seed=3)
    assert asked[:100] == generated_questions(100, seed=3)
    assert asked[0] != generated_questions(1, seed=4)[0]
    assert len({question.question for question in asked}) == len({question.id for question in asked}) == 800
    assert all(is_checkable(question) for question in asked)
    assert generated_questions(2000)[-1].id == "sequence-250", "the templates have enough fillings"


@pytest.mark.parametrize("dial", [None, 0.0, 0.5, 1.0])
def test_graded_questions_are_the_same_for_a_seed_and_never_twice(dial: float | None) -> None:
    count = 100 * len(FAMILIES)
    asked = graded_questions(count, seed=3, difficulty=dial)
    assert asked[:50] == graded_questions(50, seed=3, difficulty=dial)
    assert asked[:9] != graded_questions(9, seed=4, difficulty=dial)
    assert len({each.question for each in asked}) == len({each.id for each in asked}) == count
    assert Counter(each.kind for each in asked) == dict.fromkeys(("analytical", "factual", "technical"), count // 3)
    assert all(is_checkable(each) and is_right(each, f"The answer is {each.answer}.") for each in asked)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_questions_do_not_depend_on_the_others_and_grow_with_the_dial(family: str) -> None:
    alone = graded_questions(40, difficulty=0.0, families=[family])
    assert alone[:3] == tuple(each for each in graded_questions(27, difficulty=0.0) if each.id.startswith(f"{family}-"))
    harder = graded_questions(40, difficulty=1.0, families=[family])
    assert sum(len(each.question) for each in harder) > sum(len(each.question) for each in alone)


def comparison(question: str) -> str:
    choose = max if "larger" in question else min
    return choose(re.findall(r"\d+\.\d+", question), key=float)


def logic(question: str) -> str:
    pairs = re.findall(r"(\w+) is taller than (\w+)", question)
    taller = {name: sum(name == low for _, low in pairs) for pair in pairs for name in pair}
    order = [name for name in taller if taller[name] == 0]
    while len(order) < 4:
        order.append(next(low for high, low in pairs if high == order[-1]))
    place = re.search(r"is the ([\w ]+)\?", question)
    return order[["tallest", "second tallest", "third tallest", "shortest"].index(place[1])]


def order(question: str) -> str:
    pairs = re.findall(r"(\w+) is \w+er than (\w+)\.", question)
    [first] = {more for more, _ in pairs} - {less for _, less in pairs}
    return str(first)


def lookup(question: str) -> str:
    asked = re.search(r"In which town does (\w+) live", question)
    [town] = re.findall(rf"{asked[1]} lives in (\w+)", question)
    return str(town)


def frequent(question: str) -> str:
    names = re.findall(r"\w+", question.split("?")[1].split(".")[0])
    (winner, most), (_, second) = Counter(names).most_common(2)
    assert most > second
    return winner


def sorts(question: str) -> str:
    sort, _, things = question.partition(": ")
    [right] = [thing for thing in re.findall(r"[A-Z]\w+", things)[:-1] if thing in SORTS[sort[len("Which one is ") :]]]
    return right


@pytest.mark.parametrize("solve", [comparison, logic, order, lookup, frequent, sorts])
def test_computed_answers_are_what_another_way_finds(solve: Callable[[str], str]) -> None:
    asked = [each for each in generated_questions(400) if each.kind == solve.__name__]
    if solve.__name__ in FAMILIES:
        asked = [each for dial in (0.0, 0.3, 0.7, 1.0) for each in graded_questions(60, 5, dial, [solve.__name__])]
    assert len(asked) >= 50
    assert [each.answer for each in asked] == [solve(each.question) for each in asked]


def test_a_family_that_runs_out_is_named() -> None:
    with pytest.raises(InputError, match=r"'sums' has no more questions at difficulty 0\.0"):
        graded_questions(1000, difficulty=0.0, families=["sums"])
