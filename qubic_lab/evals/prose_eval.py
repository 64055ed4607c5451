"""How often the rules read what an answer in plain prose says, on answers judged by hand."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from qubic_lab.consensus.answer_readers import PROSE, SPAN
from qubic_lab.consensus.answers import final_answer, same
from qubic_lab.consensus.quality import judge
from qubic_lab.consensus.words import stem, words
from qubic_lab.evals.paired import MeanEstimate, share_estimate
from qubic_lab.evals.questions import read_objects
from qubic_lab.provenance import data_file

PROSE_FILE = data_file("consensus/prose.jsonl", __file__)
RIGHT, MISSING, WRONG = "right", "missing", "wrong"


@dataclass(frozen=True)
class JudgedAnswer:
    """A text and the `answer` that a reader takes from it; `data/consensus/README.md` explains the fields."""

    id: str
    language: str
    kind: str
    origin: str
    question: str
    text: str
    answer: str
    part: str


@dataclass(frozen=True)
class ReadAnswers:
    """The shares of a group of answers that are read right and wrong; the others are missing: not read."""

    name: str
    right: MeanEstimate
    wrong: MeanEstimate


def committed_answers(part: str = "held-out") -> tuple[JudgedAnswer, ...]:
    """Return the judged answers of a part: rules are made on `development` and measured on `held-out`."""
    rows = (JudgedAnswer(**fields) for _, fields in read_objects(PROSE_FILE, "answers"))
    return tuple(row for row in rows if row.part == part)


def evaluate_reading(answers: Sequence[JudgedAnswer]) -> tuple[ReadAnswers, ...]:
    """Return the shares of all answers, then of each origin, language and kind, with Wilson intervals."""
    groups: dict[str, Counter[str]] = {"all": Counter()}
    for each in answers:
        how = how_read(each)
        for name in ("all", each.origin, each.language, each.kind):
            groups.setdefault(name, Counter())[how] += 1
    shares = {name: [share_estimate(n[how], n.total()) for how in (RIGHT, WRONG)] for name, n in groups.items()}
    return tuple(ReadAnswers(name, *pair) for name, pair in shares.items())


def how_read(judged: JudgedAnswer) -> str:
    """Return whether the rules read an answer RIGHT or WRONG, or it is MISSING, as a vote would.

    Prose and what has no vote are not read. A unit may be left out on either side, as in `scoring`, and a plural
    counts as its singular.
    """
    found = final_answer(judged.text, judged.question)
    is_read = found.kind != PROSE and judge(judged.text, judged.question, "stop", found).usable
    if not (judged.answer and is_read):
        return MISSING if judged.answer else WRONG if is_read else RIGHT
    wanted = final_answer(f"The answer is {judged.answer}", judged.question)
    is_number = found.number is not None and found.number == wanted.number and "" in (found.unit, wanted.unit)
    is_name = found.kind == wanted.kind == SPAN and [*map(stem, words(found.value))] == [
        *map(stem, words(wanted.value))
    ]
    return RIGHT if is_number or is_name or same(found, wanted) else WRONG
