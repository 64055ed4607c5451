"""What answers say in the end: what is found, what is the same, what never is, and what rules leave open."""

from fractions import Fraction
from itertools import permutations, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tables import parts, sides, table

from qubic_lab.consensus import symbolic
from qubic_lab.consensus.answer_readers import KINDS, NO_ANSWER
from qubic_lab.consensus.answers import final_answer, same
from qubic_lab.consensus.conclusions import conclusion
from qubic_lab.consensus.contradictions import contradicts
from qubic_lab.consensus.dates import find_dates, may_agree
from qubic_lab.consensus.quantities import chinese_number, combined, plain, plain_quantities, quantities, spelled_out
from qubic_lab.consensus.units import base_unit, find_unit
from qubic_lab.consensus.words import MOST_READ, words_and_signs
from qubic_lab.evals.pairs_eval import HALVES, LABELS, committed_pairs, half_of

PLANETS = "Which planet turns slowest? (A) Mercury (B) Venus (C) Mars"
DOSES = "How much is it? A) 5 mg B) 0.5 g C) 50 mg"
RACE = "Ana finished behind Chen, and Boris behind Ana. Who came second?"
NUMBERS = r"""
1,234.5 → 1234.5 | 1.234,5 → 1234.5 | 1.234.567 → 1234567 | 1 234 km → 1234 km | 0,5 kg → 0.5 kg | ½ → 1/2 |
1½ cups → 3/2 | 2 1/2 → 5/2 | \frac{1}{3} → 1/3 | 3×10^8 m/s → 3e8 m/s | 3 \times 10^{-3} → 3e-3 | 6.02e23 → 6.02e23 |
10⁶ → 1000000 | 2.5 million → 2500000 | ５０％ → 50 % | 百分之50 → 50 % | 百分之五十 → 50 % | 三分之一 → 1/3 |
十二 → 12 | 一千二百零五元 → 1205 元 | 1.5亿 → 150000000 | 负5 → -5 | twenty-one → 21 |
two hundred and five thousand → 205000 | one and a half hours → 3/2 h | two thirds → 2/3 | a dozen → 12 |
minus five → -5 | $12 → 12 $ | -$12 → -12 $ | $12$ → 12 | costs \$5 → 5 $ | 75 cents → 75 ¢ | 25 m² → 25 m^2 |
30 square metres → 30 m^2 | 20平方米 → 20 m^2 | 60千米每小时 → 60 km/h | 60 kilometres per hour → 60 km/h |
5 ft 11 in → 71/12 ft | 17 minutes 30 seconds → 35/2 min | 1小时30分钟 → 3/2 h | 1h30 → 3/2 h |
minus 5 degrees Celsius → -5 °C | 3 p.m. → 900 clock | 12:30 am → 30 clock | 下午三点半 → 930 clock | 3 MW → 3 MW |
3 mW → 3 mW | 1980s → 1980 decade | 12 apples → 12 | 5G → 5
"""
DATES = """
2021-03-03 → 2021-03-03 | 3 March 2021 → 2021-03-03 | the 3rd of March, 2021 → 2021-03-03 |
March 3rd, 2021 → 2021-03-03 | 2021年3月3日 → 2021-03-03 | 二〇二一年三月三日 → 2021-03-03 | 25/12/2021 → 2021-12-25 |
3.4.2021 → 2021-04-03 | 03/04/2021 → 2021-03-04|2021-04-03 | 05/05/2021 → 2021-05-05 | March 2021 → 2021-03 |
on March 3. → --03-03 | 44 BC → -0044 | 公元前44年 → -0044 | AD 79 → 0079 | 2021-02-30 → none |
in May 12 people came → none | 1500年前 → none | 3/4 → none
"""
CONVERSIONS = """
1 km = 1000 m | 1 mile = 1609.344 m | 90 min = 1.5 h | 1 year = 12 months | 0 °C = 32 °F | 0 °C = 273.15 K |
36 km/h = 10 m/s | 1 m^3 = 1000 l | 1 g/ml = 1000 kg/m^3 | 1 ha = 10000 m² | 1 GB = 1000 MB | 1 GiB = 1024 MiB |
1 kWh = 3.6 MJ | 50% = 0.5 | 1公斤 = 2斤
"""


# --- Numbers, units, dates


@pytest.mark.parametrize("row", table(NUMBERS))
def test_one_number(row: str) -> None:
    text, expected = parts(row)
    value, _, unit = expected.partition(" ")
    written = plain(text)
    found = plain_quantities(written)
    if not found:
        written = spelled_out(written)
        found = plain_quantities(written)
    (quantity,) = combined(found, written)
    assert (quantity.value, quantity.unit) == (Fraction(value), unit)


@pytest.mark.parametrize("text", ["H2O and COVID-19", "Python 3.11.7", "192.168.0.1", "none", "9" * 5000, "1e9999999"])
def test_no_number(text: str) -> None:
    assert quantities(text) == []


def test_several_numbers_stay_apart() -> None:
    assert [each.value for each in quantities("[0,1] and 100 200 300")] == [0, 1, 100, 200, 300]
    assert [each.unit for each in quantities("from $5 to $6, 3 km or 10-15 m")] == ["$", "$", "km", "", "m"]
    chinese = ("十", "二十", "一百零五", "三万二千", "两亿")
    assert [chinese_number(text) for text in chinese] == [10, 20, 105, 32_000, 200_000_000]


@pytest.mark.parametrize("row", table(DATES))
def test_dates(row: str) -> None:
    text, value = parts(row)
    assert [date.value for date in find_dates(plain(text))] == ([] if value == "none" else [value])


def test_dates_agree_where_a_part_is_left_open() -> None:
    for one, other in (("2021-03", "2021-03-03"), ("--03-03", "2021-03-03"), ("2021-03-04|2021-04-03", "2021-04-03")):
        assert may_agree(one, other)
    assert not may_agree("2021-03-04|2021-04-03", "2021-05-05") and not may_agree("-0044", "0044")


@pytest.mark.parametrize("row", table(CONVERSIONS))
def test_units_convert_exactly(row: str) -> None:
    (first,), (second,) = map(quantities, row.split(" = "))
    assert first.base == second.base


def test_units_that_are_not_known_or_not_one_thing() -> None:
    assert [find_unit(name) for name in ("pound", "apples", "¥", "G", "mw", "", "°C/m")] == [None] * 7
    assert find_unit("KM") == find_unit("km")
    assert base_unit("length/time") == "m/s" and base_unit("number") == ""


# --- Where the answer stands


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"\boxed{1} and \boxed{\frac{\sqrt{2}}{2}}", r"\frac{\sqrt{2}}{2}"),
        (r"\boxed{\text{B}}", "B"),
        (r"\boxed{12", r"\boxed{12"),
        ("The answer is St. Gallen. It is in Switzerland.", "St. Gallen"),
        ("答案是十二。因为……", "十二"),
        ("The answer is not 13.", "The answer is not 13."),
        ("<think>a</think>b<think>c", "b"),
        ("<think>only", ""),
        ("plain\ntext", "plain\ntext"),
    ],
)
def test_conclusion(text: str, found: str) -> None:
    assert conclusion(text) == found


@pytest.mark.parametrize(
    ("question", "text", "kind", "value"),
    [
        ("", "x = 12", "number", "x = 12"),
        ("Solve 2x = 24 for x.", "Divide by 2.\nSo x = 12.", "number", "12"),
        ("How many apples does she need?", "She needs 12 apples, 3 more than the 9 that she has.", "number", "12"),
        ("How many kilometres is it?", "5", "number", "5 km"),
        ("How much is left?", "It loses 5% an hour. Therefore 216.6 litres are left.", "number", "216.6 l"),
        ("How much did sales change?", "They fell by 5%.", "number", "-increase = 5 %"),
        ("By how much did sales fall?", "They fell by 5%.", "number", "5 %"),
        ("How far is it?", "10-15 km", "number", "10000 m; 15000 m"),
        ("How many came?", "At least 12 people came.", "prose", None),
        ("How many came?", "The text does not say how many; chapter 3 might.", "prose", None),
        ("", "World War I ended in 1918.", "prose", None),
        ("In which year was it signed?", "It was signed on 24 October 1648.", "date", "1648"),
        ("When was it signed?", "It was signed on 24 October 1648.", "date", "1648-10-24"),
        ("When was it signed?", "Before 24 October 1648.", "span", None),
        (PLANETS, "Venus takes longest.", "choice", "B"),
        (PLANETS, "Not (A): it is (B).", "choice", "B"),
        (PLANETS, "Venus is not the slowest.", "prose", None),
        (PLANETS, "Mercury, Venus and Mars are planets.", "prose", None),
        (DOSES, "500 mg", "choice", "B"),
        ("下列哪个正确？A. 甲 B. 乙", "选B。", "choice", "B"),
        ("Which are right? (A) x (B) y (C) z", "A and C", "choice", "AC"),
        ("Is it hot?", "Yes, because the sun shines.", "choice", "yes"),
        ("Is it hot?", "It is not: the sun has set.", "choice", "no"),
        ("水会膨胀吗？", "会膨胀，因为……", "choice", "yes"),
        ("水会膨胀吗？", "不膨胀。", "choice", "no"),
        ("Which is heavier, gold or iron?", "Gold is heavier.", "choice", "gold"),
        ("Which is heavier, gold or iron?", "Iron is lighter.", "choice", "gold"),
        (RACE, "Ana", "choice", "ana"),
        ("On which day was it?", "It was delivered on a Tuesday.", "choice", "tuesday"),
        ("What is the capital of Australia?", "The capital of Australia is Canberra.", "span", "canberra"),
        ("What is the capital of Australia?", "Canberra is not the capital.", "prose", None),
        ("澳大利亚的首都是哪里？", "澳大利亚的首都是堪培拉。", "span", "堪 培 拉"),
        ("What is the symbol of tungsten?", "The symbol is W, from the German name Wolfram.", "span", "W"),
        ("Where is it?", "Springfield, Illinois", "span", "springfield illinois"),
        ("What does it print?", "It squares them and prints [1,9,25].", "code", "literal [1, 9, 25]"),
        ("Which git command shows the history?", "Use `git log` for that.", "code", "git log"),
        ("How many does it print?", "```python\nprint(3)\n```\nIt prints 1.", "number", "1"),
        ("", r"\boxed{2x+1}", "symbolic", "2x+1"),
        ("What is the area?", r"The area is $\pi r^2$.", "symbolic", r"\pi r^2"),
        ("Why is the sky blue?", "Air scatters blue light more.", "prose", None),
        ("", "", "prose", ""),
    ],
)
def test_kind_and_value(question: str, text: str, kind: str, value: str | None) -> None:
    found = final_answer(text, question)
    assert found.kind == kind
    assert value is None or found.value == value


def test_no_answer_is_the_same_as_none_only() -> None:
    assert final_answer("<think>It is 12") == final_answer(" ") == NO_ANSWER
    assert same(NO_ANSWER, NO_ANSWER) is True
    assert same(NO_ANSWER, final_answer("12")) is same(final_answer("words and words"), NO_ANSWER) is False


# --- The same, never the same, and what rules cannot tell


def asked_pair(row: str) -> tuple[str, str, str]:
    """Return the question of a row, which may be left out, and its two answers."""
    question, _, answers = row.rpartition(" → ")
    return PLANETS if question == "PLANETS" else question, *sides(answers)


SAME = [
    ("How many?", ["12", "twelve", "There are 12.", "<think>13</think>12", r"\boxed{12}", "答案是十二。", "１２"]),
    ("Solve for x.", ["x = 12", "12", "x=12.0", r"$x = \frac{24}{2}$"]),
    ("", ["0.5", "1/2", "½", "50%", "百分之五十", r"\frac{2}{4}"]),
    ("How long does it take?", ["90 minutes", "1.5 h", "It takes an hour and a half: 1 h 30 min.", "1小时30分钟"]),
    ("When was it?", ["3 March 2021", "2021-03-03", "March 3rd, 2021", "2021年3月3日", "It was on 3 March 2021."]),
    ("When was it?", ["03/04/2021", "It was on 03/04/2021."]),
    ("How much is it?", ["$0.75", "75 cents"]),
    (PLANETS, ["(B)", "B", "option B", "Venus", "The answer is B, since it takes 243 days."]),
    ("Is it true?", ["Yes.", "True", "That's correct, it is.", "是的", "对"]),
    ("Who wrote it?", ["Gabriel García Márquez", "gabriel garcia marquez.", "It was Gabriel Garcia Marquez"]),
    ("What does it print?", ["[1, 2]", "It prints [1,2]."]),
    ("Write it in Python.", ["```python\nx=1 # one\n```", "```\nx = 1\n```", "Here:\n```py\n\nx = (1)\n```\nDone."]),
    ("Write the SQL query.", ["SELECT a FROM t;", "```sql\nselect a\nfrom t -- all\n```"]),
    ("", [r"\sqrt{2}", "√2", "sqrt(2)", r"\boxed{\frac{2}{\sqrt{2}}}"]),
    ("Simplify it.", ["2x+1", "$1 + 2x$", "x + x + 1"]),
    ("", ["2^{10}", "1024", "32^2", "2**10"]),
    ("Which agency?", ["NASA", "Nasa", "It is NASA."]),
    ("Which gas?", ["CO2", "It is CO2."]),
    ("Which x solve it?", ["x = 2 or x = 3", "x = 3 or x = 2"]),
    ("", ["x > 3", "3 < x"]),
]
NEVER_ROWS = r"""
x = 12 ~ x = 13 | x = 12 ~ y = 12 | 12 m ~ 12 km | 12 m ~ 12 s | $5 ~ €5 | 3 MW ~ 3 mW | 5 ~ -5 | 12 ~ 12.4 |
2**5 ~ 25 | 1 month ~ 30 days | How much did it change? → It rose by 5%. ~ It fell by 5%. |
How many? → between 10 and 12 ~ 12 | yes ~ no | true ~ false | 是 ~ 不是 | increase ~ decrease |
What happens? → It increases. ~ It decreases. | It is safe. ~ It is not safe. | safe ~ unsafe |
他喜欢咖啡 ~ 他不喜欢咖啡 | When was it? → 3 March 2021 ~ 3 May 2021 | When was it? → 03/04/2021 ~ 5 May 2021 |
PLANETS → B ~ C | Which day? → Thursday ~ Friday | [1, 2] ~ [2, 1] | Simplify it. → 2x+1 ~ 2x-1 |
\sqrt{2} ~ 1.41421356 |
Why? → The list is sorted because the tree is balanced. ~ The list is not sorted because the tree is balanced.
"""
NEVER = [asked_pair(row) for row in table(NEVER_ROWS)]
OPEN_ROWS = r"""
x = 12 ~ 12 | 12 km ~ 12 | ¥50 ~ 50元 | 1/3 ~ 0.33 | How many? → more than 12 ~ 12 | 2 and 4 ~ 4 and 2 |
When was it? → 03/04/2021 ~ 3 April 2021 | When was it? → 03/04/2021 ~ 04/03/2021 |
When was it? → March 2021 ~ 3 March 2021 | Paris ~ Lyon | Which language is it? → C++ ~ C# |
Which language is it? → It is C. ~ It is C++. | What is the symbol of cobalt? → Co ~ CO | 👍 fine ~ 👎 fine |
Which is lighter, gold or iron? → Gold is not lighter. ~ Iron is not lighter. |
What happens to pressure and volume? → The pressure rises. ~ The volume rises. | x > 3 ~ 2x > 6 |
Why? → Air scatters blue light. ~ Short waves are scattered more.
"""
OPEN = [asked_pair(row) for row in table(OPEN_ROWS)] + [
    ("", "|y|", "y + 0"),
    ("Write it in Python.", "```python\nx = 1\n```", "```python\ny = 1\n```"),
]


@pytest.mark.parametrize(("question", "texts"), SAME)
def test_the_same(question: str, texts: list[str]) -> None:
    answers = [final_answer(text, question) for text in texts]
    assert [(a.text, b.text) for a, b in permutations(answers, 2) if same(a, b) is not True] == []


@pytest.mark.parametrize(
    ("verdict", "question", "a", "b"), [(False, *row) for row in NEVER] + [(None, *row) for row in OPEN]
)
def test_never_the_same_and_open(verdict: bool | None, question: str, a: str, b: str) -> None:
    first, second = final_answer(a, question), final_answer(b, question)
    assert same(first, second) is same(second, first) is verdict


def test_it_is_an_equivalence_where_it_says_true() -> None:
    texts = {text for _, row in SAME for text in row} | {text for _, *pair in NEVER + OPEN for text in pair}
    questions = ["", "How many are there?", "When was it?", PLANETS, "Is it true?"]
    answers = list(dict.fromkeys(final_answer(text, question) for text in sorted(texts) for question in questions))
    alike = {(i, j): same(answers[i], answers[j]) for i, j in product(range(len(answers)), repeat=2)}
    places = range(len(answers))
    classes = {i: {j for j in places if alike[i, j]} for i in places}
    assert len(answers) > 150
    assert all(alike[i, i] is True for i in places)
    assert all(alike[i, j] is alike[j, i] for i, j in alike)
    assert all(classes[i] == classes[j] for i, j in alike if alike[i, j]), "transitive"
    assert sum(len(found) > 1 for found in classes.values()) > 60


@given(st.text(max_size=200) | st.sampled_from([text for _, row in SAME for text in row]), st.text(max_size=40))
@example("1e999999999 " * 3, "How many?")
@example("9" * 6000, "How many?")
@example("万" * 300, "多少？")
@example("\\boxed{" * 50, "")
@example("[" * 3000, "What does it print?")
@example("`'`\x00", "Write a command")
@settings(max_examples=200)
def test_any_text_is_read(text: str, question: str) -> None:
    answer = final_answer(text, question)
    assert answer.kind in KINDS
    assert same(answer, answer) is True
    assert not contradicts(text, text)


@pytest.mark.parametrize(
    "piece", ["1,", "answer is ", "\\boxed{", "```\n", "x=1, ", "万", "a (", "not ", "3 March ", "{1,", "so ", "by A "]
)
def test_long_texts_are_read_at_both_ends(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    for question in ("", "How many?", "When was it?", "Write a function.", "Who is it?", PLANETS):
        assert final_answer(text, question).kind in KINDS
    assert not contradicts(text, text[1:])
    assert final_answer("So much for that. " * MOST_READ + "So there are 12.", "How many?").number == 12


@given(st.integers(-(10**9), 10**9), st.sampled_from(["km", "kg", "h", "l", "°C"]), st.integers(1, 10**6))
@settings(max_examples=50)
def test_other_numbers_and_other_units_are_never_the_same(value: int, unit: str, more: int) -> None:
    here = final_answer(f"{value} {unit}")
    assert here.number == value and here.unit == unit
    assert same(here, final_answer(f"It is {value:,} {unit}.")) is True
    assert same(here, final_answer(f"{value + more} {unit}")) is same(here, final_answer(f"{value} Hz")) is False


CLAIMS = """
It is {}safe to drink the water | The vote was {}secret | The committee did {}accept the plan | Glass is {}a liquid |
This can {}be undone | The valve should {}be open
"""


@pytest.mark.parametrize("claim", table(CLAIMS))
@pytest.mark.parametrize("question", ["", "What about it?", "Is it so?"])
def test_a_negation_is_never_the_same(claim: str, question: str) -> None:
    said, denied = claim.format(""), claim.format("not ")
    assert same(final_answer(said, question), final_answer(denied, question)) is not True
    assert contradicts(said, denied) and contradicts(denied, said)


# --- Contradictions


CONTRADICTIONS = """
Prices rise. ~ Prices fell. | It isn't safe to swim there. ~ It's safe to swim there. |
You should never mix bleach with ammonia. ~ You should mix bleach with ammonia. |
Ana is taller than Boris. ~ Boris is taller than Ana. | The vote was before the war. ~ The vote was after the war. |
The war ended in 1918. ~ The war ended in 1919. | The train leaves at 10:30. ~ The train leaves at 10:45. |
It grew, and the tunnel is 57 km long. ~ The tunnel is 57 miles long, it grew. | Yes, it floats. ~ No, it sinks. |
水结冰时体积增大。 ~ 水结冰时体积减小。 | 法院支持了原告的请求。 ~ 法院没有支持原告的请求。 |
铁的密度比铜大。 ~ 铜的密度比铁大。 | 可以。 ~ 不可以。
"""
NO_CONTRADICTIONS = """
Prices do not rise. ~ Prices fall. | Ana is taller than Boris. ~ Boris is shorter than Ana. |
The vote was before the war. ~ The war was after the vote. |
The tunnel is 57 km long. ~ The tunnel is 57,000 m long. |
Gas expands when hot and contracts when cold. ~ Gas contracts when cold, expands when hot. |
Coffee is good for the heart. ~ Tea is not good for the heart. |
The effect is large in children. ~ The effect is small in adults. |
In 2019 the museum had 410,000 visitors. ~ In 2022 the museum had 265,000 visitors. |
It is not only cheap but also good. ~ It is cheap and good. | It was on 03/04/2021. ~ It was on 3 April 2021. |
Yes. ~ No doubt. | 水结冰时体积增大。 ~ 水结冰时体积不会减小。 | 小明比小红高。 ~ 小红比小明矮。 |
他非常喜欢咖啡。 ~ 他喜欢咖啡。 | 没错，可以。 ~ 可以。 |  ~ No.
"""


@pytest.mark.parametrize(
    ("row", "expected"),
    [(row, True) for row in table(CONTRADICTIONS)] + [(row, False) for row in table(NO_CONTRADICTIONS)],
)
def test_contradictions(row: str, expected: bool) -> None:
    a, b = sides(row)
    assert contradicts(a, b) is contradicts(b, a) is expected


# --- Formulas: the other process


FORMULAS = r"""
x^2 - 1 ~ (x-1)(x+1) | \pi r^2 ~ πr² | sin(x)^2 + cos(x)^2 ~ 1 | e^{i\pi} ~ -1 | \int_0^1 x dx ~ 1/2 | \ln 2 ~ ln(2) |
\{1, 2\} ~ \{2, 1\}
"""


@pytest.mark.parametrize("row", table(FORMULAS))
def test_formulas_have_a_canonical_form(row: str) -> None:
    a, b = sides(row)
    assert symbolic.canonical(a) == symbolic.canonical(b) is not None


def test_what_only_some_values_share_has_another_form_and_what_is_no_formula_has_none() -> None:
    assert symbolic.canonical("|x|") != symbolic.canonical("x + 0")
    assert symbolic.canonical("2x+1") != symbolic.canonical("2y+1")
    assert symbolic.canonical("1/3") != symbolic.canonical("0.333333333")
    for text in ("x" * 301, r"\frac{", "(((", r"\begin{matrix}"):
        assert symbolic.canonical(text) is None


def test_a_formula_whose_reader_is_lost_or_does_not_end_has_none_and_the_next_one_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert symbolic.canonical("7x + 1") is not None
    for worker in symbolic._POOL._workers:
        worker.process.kill()
        worker.process.wait()
    assert symbolic.canonical("7x + 2") is not None
    with monkeypatch.context() as hurried:
        hurried.setattr(symbolic, "SECONDS", 0.5)
        assert symbolic.canonical(r"(10^{10^{7}})!") is None
    assert symbolic.canonical("7x + 4") is not None


# --- The pairs


def test_committed_pairs_are_balanced_and_varied() -> None:
    pairs = committed_pairs()
    assert len(pairs) >= 240
    counts = [sum(pair.label == label for pair in pairs) for label in LABELS]
    assert max(counts) - min(counts) <= 0.05 * len(pairs)
    assert 0.3 <= sum(pair.language == "zh" for pair in pairs) / len(pairs) <= 0.4
    assert len({pair.id for pair in pairs}) == len(pairs) and {pair.language for pair in pairs} == {"en", "zh"}
    assert len({pair.kind for pair in pairs}) == 9
    assert len({frozenset((pair.question, pair.a, pair.b)) for pair in pairs}) == len(pairs)
    assert all(1 <= len(text.split()) <= 60 for pair in pairs for text in (pair.a, pair.b))
    halves = [half_of(pair.id) for pair in pairs]
    assert set(halves) == set(HALVES) and 0.45 <= halves.count("dev") / len(pairs) <= 0.55


def test_rules_never_call_a_contradicting_pair_the_same_and_are_rarely_wrong() -> None:
    said = []
    for pair in committed_pairs():
        verdict = same(final_answer(pair.a, pair.question), final_answer(pair.b, pair.question))
        said.append((half_of(pair.id), pair.label, verdict))
    assert [row for row in said if row[1:] == ("contradicting", True)] == []
    decided = [(label, verdict) for half, label, verdict in said if half == "dev" and verdict is not None]
    right = sum((label == "same") is verdict for label, verdict in decided)
    assert len(decided) >= 75 and right == len(decided), "of the half that the rules were made on"


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_signs_of_plain_letters_are_those_of_the_general_rule(text: str) -> None:
    assert words_and_signs(text) == words_and_signs(f"{text}，")
