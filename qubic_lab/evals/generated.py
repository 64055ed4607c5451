"""Questions with computed answers: templates filled by a seeded generator."""

import datetime
import itertools
from collections.abc import Callable, Iterator
from random import Random

from qubic_lab.errors import check_range
from qubic_lab.evals.questions import Question, committed_questions, load_questions

Filled = tuple[str, str]
"""A question and its answer."""

MOST_GENERATED = 2000
"""The templates have more variants than this, so no question repeats."""
STANDARD_GENERATED = 64
"""Generated questions after the written ones if no limit is given."""
NAMES = ("Ada", "Bela", "Carl", "Dora", "Emil", "Frida", "Gustav", "Hanna")
GOODS = ("apples", "bolts", "candles", "forks", "lamps", "pens", "ropes", "tiles")
_WORDS = """
banana parallel committee engineer mississippi letter bookkeeper alphabet terrace possession carrot umbrella cinnamon
satellite pepper tomorrow address balloon coffee giraffe
"""
WORDS = tuple(_WORDS.split())
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = "January February March April May June July August September October November December"
MONTHS = tuple(_MONTHS.split())
CONVERSIONS = (("kilometres", "metres", 1000), ("hours", "minutes", 60), ("kilograms", "grams", 1000))


def questions_for(limit: int | None = None, seed: int = 0) -> tuple[Question, ...]:
    """Return the first `limit` questions: the project's written ones, then generated ones.

    By default there are STANDARD_GENERATED generated ones.

    Raises:
        InputError: `limit` is below 1 or above the number of questions.
    """
    written = load_questions(committed_questions())
    if limit is None:
        limit = len(written) + STANDARD_GENERATED
    check_range("limit", limit, 1, len(written) + MOST_GENERATED)
    return (*written[:limit], *generated_questions(max(0, limit - len(written)), seed))


def generated_questions(count: int, seed: int = 0) -> tuple[Question, ...]:
    """Return questions with computed answers, up to MOST_GENERATED; a seed gives the same sequence for any count.

    The templates take turns; no question repeats.
    """
    return tuple(itertools.islice(_endless(Random(seed)), count))


def _endless(random: Random) -> Iterator[Question]:
    asked: set[str] = set()
    for number in itertools.count(1):
        for kind, fill in TEMPLATES.items():
            question, answer = fill(random)
            while question in asked:
                question, answer = fill(random)
            asked.add(question)
            yield Question(f"{kind}-{number:02}", question, answer, kind)


def _arithmetic(random: Random) -> Filled:
    a, b, c = random.randint(11, 99), random.randint(3, 19), random.randint(101, 999)
    return random.choice(
        [
            (f"What is {a} × {b} + {c}?", str(a * b + c)),
            (f"What is {c} - {a} × {b}?", str(c - a * b)),
            (f"What is {a * b} divided by {b}?", str(a)),
        ]
    )


def _comparison(random: Random) -> Filled:
    """Decimals of different lengths: the longer one is not the larger one."""
    whole, tenth = random.randint(1, 99), random.randint(2, 9)
    short, long = f"{whole}.{tenth}", f"{whole}.{random.randint(1, tenth * 10 - 1):02}"
    first, second = random.sample([short, long], 2)
    size = random.choice(["larger", "smaller"])
    answer = short if size == "larger" else long
    return f"Which number is {size}: {first} or {second}? Answer with that number only.", answer


def _calendar(random: Random) -> Filled:
    start = datetime.date(random.randint(2001, 2099), random.randint(1, 12), random.randint(1, 28))
    later = random.randint(8, 90)
    end = start + datetime.timedelta(days=later)
    spelled = f"{start.day} {MONTHS[start.month - 1]} {start.year}"
    if random.random() < 0.5:
        day = DAYS[start.weekday()]
        return f"{spelled} is a {day}. Which day of the week is it {later} days later?", DAYS[end.weekday()]
    return f"Which date is {later} days after {spelled}? Answer in the form YYYY-MM-DD.", end.isoformat()


def _units(random: Random) -> Filled:
    large, small, factor = random.choice(CONVERSIONS)
    amount = random.randint(12, 399)
    if random.random() < 0.5:
        return f"How many {small} are {amount / 10:g} {large}?", f"{amount * factor // 10} {small}"
    return f"How many {large} are {amount * factor // 10} {small}?", f"{amount / 10:g} {large}"


def _letters(random: Random) -> Filled:
    word, other = random.sample(WORDS, 2)
    letter = random.choice(sorted(set(word)))
    return random.choice(
        [
            (f'How often does the letter "{letter}" occur in the word "{word}"?', str(word.count(letter))),
            (f'How many letters do the words "{word}" and "{other}" have together?', str(len(word + other))),
            (
                f'Write the last three letters of "{word}", followed by the first two of "{other}".',
                word[-3:] + other[:2],
            ),
        ]
    )


def _logic(random: Random) -> Filled:
    first, second, third, fourth = random.sample(NAMES, 4)
    facts = [
        f"{first} is taller than {second}.",
        f"{second} is taller than {third}.",
        f"{third} is taller than {fourth}.",
    ]
    random.shuffle(facts)
    place, name = random.choice(
        [("tallest", first), ("second tallest", second), ("third tallest", third), ("shortest", fourth)]
    )
    return f"{' '.join(facts)} Who of the four is the {place}? Answer with the name only.", name


def _table(random: Random) -> Filled:
    rows = [(item, random.randint(12, 98), random.randint(2, 30)) for item in random.sample(GOODS, 4)]
    table = "\n".join(["item | stock | price", *(f"{item} | {stock} | {price}" for item, stock, price in rows)])
    item, stock, price = random.choice(rows)
    asked, answer = random.choice(
        [
            (f"What is the stock of {item}?", stock),
            (f"What is the price of {item}?", price),
            ("What is the sum of all four prices?", sum(row[2] for row in rows)),
        ]
    )
    return f"{table}\n\n{asked}", str(answer)


def _sequence(random: Random) -> Filled:
    start, step, factor = random.randint(1, 60), random.randint(3, 12), random.randint(2, 3)
    sums, products = [start + step * n for n in range(6)], [start * factor**n for n in range(6)]
    terms = random.choice([sums, products])
    return f"Which number comes next: {', '.join(map(str, terms[:5]))}?", str(terms[5])


TEMPLATES: dict[str, Callable[[Random], Filled]] = {
    "arithmetic": _arithmetic,
    "comparison": _comparison,
    "calendar": _calendar,
    "units": _units,
    "letters": _letters,
    "logic": _logic,
    "table": _table,
    "sequence": _sequence,
}
