"""Questions with computed answers and a difficulty dial, so that a small model is neither always right nor never.

The dial goes from 0 to 1: more terms, longer lists, larger numbers, closer alternatives. Each family has a standard
setting, chosen for a model of 135 million parameters (measured in docs/evaluation.md).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from qubic_lab.errors import InputError
from qubic_lab.evals.questions import Question

MOST_GRADED = 3000
"""The maximum at once; a family that runs out of variants earlier raises an error."""
_MOST_TRIES = 200
"""After this many repeated variants in a row a family has hardly any new ones."""
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gina", "Hugo", "Ida", "Jon", "Kira", "Leo")
GOODS = ("apples", "pens", "books", "stones", "cups", "coins", "shells", "cards")
TOWNS = ("Paris", "Rome", "Oslo", "Madrid", "Berlin", "Vienna", "Lisbon", "Dublin", "Athens", "Prague")
SORTS = {
    "an animal": ("Dog", "Horse", "Tiger", "Rabbit", "Eagle", "Cow", "Frog", "Sheep"),
    "a fruit": ("Apple", "Banana", "Cherry", "Grape", "Lemon", "Mango", "Peach", "Pear"),
    "a colour": ("Red", "Green", "Blue", "Yellow", "Purple", "Brown", "Black", "White"),
    "a vehicle": ("Car", "Train", "Bicycle", "Bus", "Truck", "Tram", "Ferry", "Tractor"),
    "a musical instrument": ("Piano", "Violin", "Guitar", "Flute", "Trumpet", "Drum", "Harp", "Cello"),
    "a piece of furniture": ("Table", "Chair", "Sofa", "Bed", "Desk", "Shelf", "Wardrobe", "Bench"),
}

Filled = tuple[str, str]
"""A question and its answer."""


@dataclass(frozen=True)
class QuestionFamily:
    """One kind of task: its question type, its standard difficulty and its generator."""

    kind: str
    difficulty: float
    fill: Callable[[Random, float], Filled]


def graded_questions(
    count: int, seed: int = 0, difficulty: float | None = None, families: Sequence[str] | None = None
) -> tuple[Question, ...]:
    """Return questions with computed answers; families take turns, and no question repeats.

    A seed and dial give the same sequence for any count. An id begins with the family's name. `difficulty` is 0
    (easiest) to 1, by default each family's standard; `families` are names in FAMILIES, by default all.

    Raises:
        InputError: a family has no more questions.
    """
    names = tuple(families or FAMILIES)
    # Each family has its own stream, so its questions do not depend on the other families.
    streams = {name: Random(f"{seed} {name}") for name in names}
    asked: set[str] = set()
    questions = []
    for number in range(count):
        name = names[number % len(names)]
        dial = FAMILIES[name].difficulty if difficulty is None else difficulty
        question, answer = _new(name, streams[name], dial, asked)
        asked.add(question)
        questions.append(Question(f"{name}-{number // len(names) + 1:03}", question, answer, FAMILIES[name].kind))
    return tuple(questions)


def _new(name: str, random: Random, dial: float, asked: set[str]) -> Filled:
    for _ in range(_MOST_TRIES):
        question, answer = FAMILIES[name].fill(random, dial)
        if question not in asked:
            return question, answer
    raise InputError(f"family {name!r} has no more questions at difficulty {dial}: ask for fewer, or turn the dial up")


def _between(dial: float, easiest: float, hardest: float) -> int:
    return round(easiest + dial * (hardest - easiest))


def _sums(random: Random, dial: float) -> Filled:
    """Sums of two numbers; in the harder half, of three with a subtraction."""
    most = _between(dial, 9, 60)
    a, b, c = random.randint(1, most), random.randint(1, most + 3), random.randint(1, most)
    if dial < 0.5:
        return random.choice(["What is {} + {}?", "Calculate {} + {}.", "{} + {} = ?"]).format(a, b), str(a + b)
    return random.choice(["What is {} + {} - {}?", "Calculate {} + {} - {}."]).format(a, b, c), str(a + b - c)


def _largest(random: Random, dial: float) -> Filled:
    """The largest of several numbers; harder with more and closer numbers."""
    base = random.randint(100, 899)
    numbers = random.sample(range(base, base + _between(dial, 100, 10)), _between(dial, 2, 6))
    listed = ", ".join(map(str, numbers))
    return f"Which of these numbers is the largest: {listed}? Answer with that number only.", str(max(numbers))


def _order(random: Random, dial: float) -> Filled:
    """The first of a shuffled chain of comparisons; harder with longer chains."""
    stem = random.choice(["tall", "old", "fast", "strong"])
    names = random.sample(NAMES, _between(dial, 2, 6))
    facts = [f"{more} is {stem}er than {less}." for more, less in itertools.pairwise(names)]
    random.shuffle(facts)
    return f"{' '.join(facts)} Who is the {stem}est? Answer with the name only.", names[0]


def _lookup(random: Random, dial: float) -> Filled:
    """A fact in a text; harder with more people, and in the harder half with their places of birth."""
    count = _between(dial, 2, 8)
    names, towns = random.sample(NAMES, count), random.sample(TOWNS, count)
    born = [f" and was born in {town}" if dial >= 0.5 else "" for town in random.sample(TOWNS, count)]
    facts = [f"{name} lives in {town}{more}." for name, town, more in zip(names, towns, born, strict=True)]
    asked = random.randrange(count)
    return f"{' '.join(facts)} In which town does {names[asked]} live? Answer with the town only.", towns[asked]


def _frequent(random: Random, dial: float) -> Filled:
    """The most frequent name of a list; harder with more names of almost equal frequency."""
    winner, *others = random.sample(NAMES, _between(dial, 2, 5))
    rest = _between(dial, 1, 3)
    names = [winner] * (rest + _between(dial, 2, 1)) + [name for name in others for _ in range(rest)]
    random.shuffle(names)
    return f"Which name occurs most often in this list? {', '.join(names)}. Answer with the name only.", winner


def _sorts(random: Random, dial: float) -> Filled:
    """The thing of a given sort among several; harder with more of them."""
    sort = random.choice(list(SORTS))
    right = random.choice(SORTS[sort])
    elsewhere = [thing for other, things in SORTS.items() if other != sort for thing in things]
    things = [right, *random.sample(elsewhere, _between(dial, 1, 7))]
    random.shuffle(things)
    listed = ", ".join(things[:-1])
    return f"Which one is {sort}: {listed} or {things[-1]}? Answer with that word only.", right


def _expression(random: Random, dial: float) -> Filled:
    """A small Python expression, evaluated by Python itself."""
    a, b, c = (random.randint(2, _between(dial, 9, 30)) for _ in range(3))
    word = random.choice(GOODS)
    easy = [f"{a} + {b}", f"max({a}, {b + 6})", f'len("{word}") + {a}', f"{a} * {b}"]
    hard = [f"{a} * {b} - {c}", f"{a * b} // {c} + {a}", f"({a} + {b}) % {c}", f'len("{word}" * {a % 5 + 1}) - {b}']
    text = random.choice(hard if random.random() < dial else easy)
    return f"What is the value of this Python expression? {text}", str(eval(text))


def _dictionary(random: Random, dial: float) -> Filled:
    """The output of a small program with a dictionary; harder with more keys, and in the harder half a sum of two."""
    names = random.sample(NAMES, _between(dial, 2, 8))
    ages = {name: random.randint(11, 99) for name in names}
    listed = ", ".join(f'"{name}": {age}' for name, age in ages.items())
    first, second = random.sample(names, 2)
    if dial < 0.5:
        printed, answer = f'ages["{first}"]', ages[first]
    else:
        printed, answer = f'ages["{first}"] + ages["{second}"]', ages[first] + ages[second]
    return f"ages = {{{listed}}}\nprint({printed})\n\nWhat does this Python program print?", str(answer)


def _index(random: Random, dial: float) -> Filled:
    """An item of a Python list; harder with longer lists and inner indices."""
    names = random.sample(NAMES, _between(dial, 2, 8))
    listed = ", ".join(f'"{name}"' for name in names)
    if random.random() < dial:
        index = random.randrange(-len(names), len(names))
        return f"In Python, names = [{listed}]. What is names[{index}]? Answer with the name only.", names[index]
    end, answer = random.choice([("first", names[0]), ("last", names[-1])])
    return f"What is the {end} item of this Python list? [{listed}] Answer with the name only.", answer


FAMILIES: dict[str, QuestionFamily] = {
    "sums": QuestionFamily("analytical", 0.0, _sums),
    "lookup": QuestionFamily("factual", 0.0, _lookup),
    "expression": QuestionFamily("technical", 0.1, _expression),
    "largest": QuestionFamily("analytical", 0.0, _largest),
    "frequent": QuestionFamily("factual", 0.25, _frequent),
    "dictionary": QuestionFamily("technical", 0.0, _dictionary),
    "order": QuestionFamily("analytical", 0.0, _order),
    "sorts": QuestionFamily("factual", 0.0, _sorts),
    "index": QuestionFamily("technical", 0.2, _index),
}
