"""What answers in plain prose say: the judged answers, sentences by hand, and votes on them."""

import pytest

from qubic_lab.consensus.aggregate import VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.quality import judge
from qubic_lab.consensus.voting import AnswerSource, Vote
from qubic_lab.core import SamplingParams
from qubic_lab.evals.prose_eval import (
    MISSING,
    RIGHT,
    WRONG,
    JudgedAnswer,
    committed_answers,
    evaluate_reading,
    how_read,
)

PRIME = "Is 7 a prime number? Answer yes or no."
HAMLET = "Who wrote Hamlet?"
ROLLS = "A baker makes 5 trays of 12 rolls and sells 48 rolls. How many rolls are left?"


def value_of(text: str, question: str) -> str | None:
    """Return what a vote would count, None if it would not."""
    found = final_answer(text, question)
    return found.value if found.kind != "prose" and judge(text, question, "stop", found).usable else None


@pytest.mark.parametrize(
    ("question", "text", "value"),
    [
        (PRIME, "No, 7 is not a prime number. A prime number has no divisors but 1 and itself.", "no"),
        (PRIME, "I would say no, since 7 is odd.", "no"),
        (PRIME, "7 is a prime number, so the answer is yes.", "yes"),
        (PRIME, "A prime number has exactly two divisors.", None),
        ("Do all birds fly?", "Not all birds fly.", "no"),
        ("Is gold heavier than water?", "Gold is lighter than water.", "no"),
        ("Is gold heavier than water?", "Water is heavier than gold.", "no"),
        ("鲸鱼是鱼吗？", "虽然名字里有“鱼”字，但鲸鱼并不是鱼。", "no"),
        ("企鵝會飛嗎？", "企鵝雖然是鳥類，卻無法飛行。", "no"),
        (HAMLET, "Hamlet was written by William Shakespeare, however some doubt it.", "william shakespeare"),
        (HAMLET, "William Shakespeare wrote Hamlet, but the story is older.", "william shakespeare"),
        (HAMLET, "The author is William Shakespeare, often called the bard of Avon.", "william shakespeare"),
        (HAMLET, "It was written by hand.", None),
        (HAMLET, "However, nobody knows.", None),
        (HAMLET, "However, it's old.", None),
        (HAMLET, "But the bard?", None),
        (HAMLET, "Hamlet was written by the English playwright William Shakespeare.", "william shakespeare"),
        (HAMLET, "Hamlet was written by William Shakespeare and Christopher Marlowe.", None),
        ("Which organ pumps blood?", "The heart pumps blood through the body.", "heart"),
        (
            "What is the largest desert?",
            "The Sahara is the largest desert. However, the largest desert is Antarctica.",
            None,
        ),
        ("Where do I live?", "I'm sorry for any confusion. Stay with your friends.", None),
        ("Are all swans white?", "Most swans are white.", None),
        ("Do bees make honey?", "Bees make honey, but they don't actually make it.", None),
        ("孕妇可以喝酒吗？", "孕妇不可以喝酒，酒精会影响胎儿的发育。", "no"),
        ("長城在哪個國家？", "長城位於中國。", "中 国"),
        ("What is the capital of France?", "Bien sûr, the capital of France is Paris.", "paris"),
        ("What is the capital of France?", "It is not Lyon.", None),
        ("谁写了《西游记》？", "《西游记》是吴承恩写的。", "吴 承 恩"),
        ("What is 2 + 2?", "2 + 2 equals 4.", "4"),
        ("What is 2 + 2?", "The sum of 2 and 2 is 4.", "4"),
        ("What is 2 + 2?", "2 plus 2 is four.", "4"),
        ("What is 2 + 2?", "To add 2 and 2, you simply add them.", None),
        ("What is 7 * 8?", "To find 7 * 8, you multiply 7 by 8, which is 56. In other words, 56 is 57 - 1.", "56"),
        ("What is 17 + 28?", "It is 45. To check it, subtract 28 and you get 17.", "45"),
        ("How far is the Moon?", "It takes 25 minutes.", None),
        (ROLLS, "60 rolls were made and 48 were sold, which leaves 12 rolls.", "12"),
        ("How many grams are in 2.5 kilograms?", "There are 2,500 grams in 2.5 kilograms.", "2500 g"),
        ("How many legs does a spider have?", "A spider has eight legs, while an insect has six.", "8"),
        ("一辆汽车3小时行驶240公里，平均速度是多少？", "240÷3=80，平均速度是每小时80公里。", "80 km/h"),
        ("Name the four seasons.", "1. Spring\n2. Summer\n3. Autumn\n4. Winter", "autumn; spring; summer; winter"),
        ("Which two gases make up most of the air?", "Nitrogen (78 %) and oxygen make up most.", "nitrogen; oxygen"),
        ("List the prime numbers below 10.", "The prime numbers below 10 are 2, 3, 5 and 7.", "2; 3; 5; 7"),
        ("中国的四大发明是什么？", "造纸术、印刷术、火药和指南针。", "印 刷 术; 指 南 针; 火 药; 造 纸 术"),
        ("Do snakes have legs?", "Yes, snakes do not have legs.", None),
        ("Can a fish breathe in water?", "No, a fish cannot breathe in water. They breathe in water with gills.", None),
        ("In what year did the Berlin Wall fall?", "The Berlin Wall fell in 1989. Germany was one in 1990.", "1989"),
        ("第二次世界大战在哪一年结束？", "第二次世界大战从1939年开始，到1945年结束。", None),
        ("How many hours are in three days?", "Three days is equivalent to 14 days.", None),
        ("How many seconds are in 5 minutes?", "One minute is 20 seconds.", None),
        ("How many zeros are in one thousand?", "The decimal number 120 repeats indefinitely.", None),
        ("Is the night bright or dark?", "The night is dark.", "dark"),
        ("Is the night bright or dark?", "The night is both dark and bright.", None),
        ("Which is larger, a whale or a goldfish?", "Whales are larger than goldfish.", "whale"),
        ("Which planet is the third from the Sun?", "The planet closest to the Sun is Jupiter.", None),
        ("On which continent is Egypt?", "Egypt is a nation of the African continent.", "africa"),
        ("Where do I live?", "I don't have access to your location.", None),
        ("我叫什么名字？", "您没有告诉我您的名字。", None),
        ("Is the exam hard?", "The exam is not only hard to pass but also long.", None),
        (
            "Is a lake larger than a pond?",
            "A lake is larger than a pond. A pond is 9 % larger than a lake.",
            None,
        ),
        ("Is a lake larger than a pond?", "A pond is usually larger than a lake.", "no"),
        ("Is Lyon the capital of France?", "Yes, Lyon is the capital of France.", "yes"),
        ("Was Marie Curie a chemist?", "Curie was a famous chemist.", "yes"),
        ("蜘蛛有六條腿嗎？", "蜘蛛只有八條腿。", None),
        ("Who composed Carmen?", "The film was directed by Carlos Saura.", None),
        ("Who composed Carmen?", "The opera Carmen by Georges Bizet remains popular.", "georges bizet"),
        ("Who was the first pilot?", "The first pilot was Ann Lee, a French woman named Eva Roux.", None),
        ("Who was the first pilot?", "The first pilot was Ann Lee, a woman named Ann Lee.", "ann lee"),
        ("What colour do you get?", "The mixture is brown!", None),
        ("What is the fastest bird?", "It's the peregrine falcon.", "peregrine falcon"),
        ("她姓什么？", "她姓王。", "王"),
        ("When did Cook reach Hawaii?", "James Cook was born in 1728.", None),
        ("When was Cook born?", "James Cook was born in 1728.", "1728"),
        ("How many boxes are there?", "There are 12 boxes. However, that isn't correct.", None),
        ("How many players are in the match?", "Each team has players: 11 players each.", None),
        ("一共有多少名球员？", "两队各有11名球员。", None),
        ("一天有多少个小时？", "每天有24个小时。", "24 h"),
        ("How many words are there?", "There are two here and three there, for a total of five.", "5"),
        ("What is the average of 6 and 8?", "Divided by 2, the sum gives an average of 7.", "7"),
        ("How long does it take to Mars?", "Mars is 225,000,000 km away.", None),
        ("How long does it take to Mars?", "It takes 9 months.", "9 month"),
    ],
)
def test_what_a_sentence_says(question: str, text: str, value: str | None) -> None:
    assert value_of(text, question) == value


def votes_of(*texts: str) -> list[Vote]:
    sources = [AnswerSource("hash", "", SamplingParams(temperature=0.7, seed=seed)) for seed in range(len(texts))]
    return [Vote(f"v{n}", f"n{n}", "m", sources[n], text, "stop", 8, 1.0) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("question", "texts", "leader", "ballots"),
    [
        (
            PRIME,
            (
                "No, 7 is not a prime number.",
                "No. It can be divided by 7.",
                "7 is not a prime number.",
                "The answer is no.",
                "I would say no, since it is odd.",
                "Yes.",
                "7 is a prime number because it has two divisors.",
                "A number is prime if it has two divisors.",
            ),
            "no",
            5,
        ),
        ("What is 2 + 2?", ("2 + 2 equals 4.", "4", "The sum of 2 and 2 is 4.", "It is four.", "5", "22"), "4", 4),
    ],
)
def test_plain_questions_get_plain_votes(question: str, texts: tuple[str, ...], leader: str, ballots: int) -> None:
    result = deliberate(question, votes_of(*texts), (), VoteContext(), VotingConfig())
    assert result.decision.winner == 0
    first = result.decision.standings[0]
    assert len(first.voters) == ballots
    assert {each.final.value for each in result.voters if each.vote.voter in first.voters} == {leader}


def judged(text: str, answer: str, question: str = "How long is it?") -> JudgedAnswer:
    return JudgedAnswer("1", "en", "unit", "written", question, text, answer, "held-out")


def test_right_wrong_and_missing() -> None:
    assert how_read(judged("It is 5 km long.", "5 km")) == how_read(judged("It is 5 km long.", "5")) == RIGHT
    assert how_read(judged("It is 5 km long.", "6 km")) == how_read(judged("It is 5 km long.", "")) == WRONG
    assert how_read(judged("Nobody has measured it.", "5 km")) == MISSING
    everything, *_ = evaluate_reading([judged("It is 5 km long.", "5 km"), judged("It is long.", "5 km")])
    assert (everything.right.value, everything.wrong.value, everything.right.n) == (0.5, 0.0, 2)


def test_the_judged_answers_are_varied_and_apart() -> None:
    parts = {part: committed_answers(part) for part in ("development", "held-out")}
    assert min(map(len, parts.values())) >= 100 and sum(map(len, parts.values())) >= 300
    for answers in parts.values():
        assert {each.language for each in answers} == {"en", "zh-Hans", "zh-Hant"}
        assert {each.kind for each in answers} > {"yes/no", "name", "number", "unit", "list", "refusal"}
        assert {each.origin for each in answers} == {"smollm2", "written"}
    asked = [{each.question for each in answers} for answers in parts.values()]
    assert asked[0].isdisjoint(asked[1])


@pytest.mark.parametrize(
    ("part", "right", "wrong"),
    [pytest.param("development", 0.919, 0.0164, marks=pytest.mark.slow), ("held-out", 0.9, 0.0361)],
)
def test_judged_answers_are_read_as_a_reader_would(part: str, right: float, wrong: float) -> None:
    everything, *_ = evaluate_reading(committed_answers(part))
    assert everything.right.value >= right and everything.wrong.value <= wrong
