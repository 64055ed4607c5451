"""Readers of foreign text take time and memory in proportion to its length, whatever it says."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from reading_worker import READERS

from qubic_lab.killable import KillableWorker

SHORT, LONG = 500, 2_000
"""Characters of the texts that show which attacks are worth longer ones."""
WITHIN_S = 20.0
NOTICED_S, NOTICED_BYTES = 0.05, 50 * 2**20
MOST_TIMES = 3.0
"""For a text of twice the length."""
SLOWEST = 2
WORDS_A_RUN = 5
"""Single words that are repeated for each run of several."""


def words(listed: str) -> tuple[str, ...]:
    """Return the words of a grammar, which are listed between bars."""
    return tuple(listed.split("¦"))


ANSWER = words(
    " ¦\n¦a ¦A) ¦(B)¦not ¦so ¦because ¦. ¦! ¦, ¦; ¦no, ¦The answer is ¦答案是¦不¦12 ¦3¦1,000¦.5¦1/2 ¦½¦²¦-¦minus ¦= "
    "¦x = ¦pi+¦\\boxed{¦}¦$¦`¦```\n¦**¦*¦|¦- a\n¦1. ¦<think>¦</think>¦twenty ¦hundred and ¦五¦百¦三分之¦3:4¦km ¦km/h "
    "¦March ¦3rd of ¦2021-03-03 ¦3月¦A beat B ¦than ¦what ¦or ¦how many ¦'¦\"¦é¦[¦(¦)¦{¦**3"
)
MARKUP = words(
    '<¦>¦<a ¦</a>¦<b>¦<!--¦-->¦<!¦<?¦<![CDATA[¦&¦&#¦&#x41;¦\'¦"¦=¦ ¦a¦<script>¦</¦/¦-¦\n¦]¦<a "¦<a b=\'>¦<p title="'
)
NEWS = words("BTC ¦bitcoin ¦$¦ethereum name ¦https://¦not ¦moon ¦!¦#¦'¦-¦,¦ ¦.\n¦A¦[+1 chars]¦…¦<a>¦1,¦\n")
CELLS = words(
    ',¦;¦\t¦\n¦"¦""¦\'¦1¦.¦-¦e¦ ¦a¦close¦time,open,high,low,close\n¦1,2,3,4,5\n¦published,title\n¦text,label\n'
    "¦question,answer\n¦2021-03-03,1,1,1,1\n¦\x00¦é"
)
OBJECTS = words(
    '[¦]¦{¦}¦"¦,¦:¦1¦[1,2],¦{"a":1}\n¦{"question":"a","answer":"b"}\n¦\\u0041¦e¦-¦ ¦\n¦null¦{"a":¦[1609459200,1,2,3,4],'
)
LINES = words(
    "a¦: ¦- ¦\n¦  ¦[¦]¦{¦}¦\"¦'¦|¦>¦&a ¦*a ¦? ¦#¦!¦%¦\\¦,¦a: 1\n¦- 1\n¦<<: *a\n¦1:¦0x¦2021-01-01 ¦~¦a:\n - [&a b]\n"
)
STAMPS = words("1¦_¦-¦:¦ ¦T¦Z¦.¦+¦0¦a¦٣¦Mon, ¦%¦[¦]¦Bearer ")
GRAMMARS = {"HTML": MARKUP, "coins": NEWS, "sentiment": NEWS, "cursor": STAMPS, "header": STAMPS, "YAML": LINES}
BY_ENDING = {"CSV": CELLS, "JSON": OBJECTS}
FIRST_LINES = {
    "questions in CSV": "question,answer\n",
    "bars in CSV": "time,open,high,low,close\n",
    "bars in JSON": "[",
    "texts in CSV": "published,title,body\n",
    "labels in CSV": "text,label\n",
}
Attack = tuple[str, str, str]
"""How a text begins, what it repeats, and how it ends."""


def attacks(reader: str, drawn: int) -> Iterator[Attack]:
    """Yield attacks on a reader: runs of several words of its grammar, `drawn` at random, and single words repeated."""
    known, draw = GRAMMARS.get(reader) or BY_ENDING.get(reader.split()[-1], ANSWER), random.Random(reader)
    runs = [(word,) for word in draw.sample(known, min(len(known), WORDS_A_RUN * drawn))]
    runs += [tuple(draw.choices(known, k=draw.choice((2, 2, 3, 5)))) for _ in range(drawn)]
    for run in runs:
        head = draw.choice(("", draw.choice(known), FIRST_LINES.get(reader, "")))
        yield head, "".join(run), draw.choice(("", "é", "\x00!", draw.choice(known)))


def text_of(attack: Attack, length: int) -> str:
    head, unit, tail = attack
    return head + unit * (length // len(unit)) + tail


class Costs:
    """What readers take for texts, measured in a process that is replaced once it takes too long."""

    def __init__(self) -> None:
        self.worker = KillableWorker("reading_worker")

    def __call__(self, reader: str, attack: Attack, length: int) -> tuple[float, float]:
        """Return seconds and bytes.

        Raises:
            AssertionError: the reader raised an error of another kind than those for users.
        """
        try:
            found = self.worker.ask({"reader": reader, "text": text_of(attack, length)}, WITHIN_S)
        except TimeoutError:
            self.worker.end()
            self.worker = KillableWorker("reading_worker")
            found = [WITHIN_S, 0.0]
        assert found is not None, f"{reader}: an error of another kind at {attack}, {length} characters"
        return found[0], found[1]


@pytest.fixture(scope="module")
def costs() -> Iterator[Costs]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        measuring = Costs()
        yield measuring
        measuring.worker.end()


def suspects(reader: str, drawn: int, costs: Costs) -> set[Attack]:
    """Return the attacks that take longest, and those that grow most."""
    found = {
        attack: (costs(reader, attack, SHORT)[0], costs(reader, attack, LONG)[0]) for attack in attacks(reader, drawn)
    }
    slowest = sorted(found, key=lambda attack: -found[attack][1])[:SLOWEST]
    return {*slowest, *sorted(found, key=lambda attack: found[attack][0] - found[attack][1] / 4)[:SLOWEST]}


@pytest.mark.parametrize(("drawn", "longest"), [(4, 8_000), pytest.param(16, 32_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("reader", READERS)
def test_cost_grows_in_proportion(reader: str, drawn: int, longest: int, costs: Costs) -> None:
    for attack in suspects(reader, drawn, costs):
        length, (short_s, short_bytes) = LONG, costs(reader, attack, LONG)
        while length < longest and short_s < 2 * NOTICED_S:
            length *= 2
            long_s, long_bytes = costs(reader, attack, length)
            for _ in range(3):  # again, as caches of the processor have other users
                if long_s < max(NOTICED_S, MOST_TIMES * short_s):
                    break
                short_s = min(costs(reader, attack, length // 2 + 1)[0] for _ in range(3))
                long_s = min(costs(reader, attack, length + 1)[0] for _ in range(3))
            shown = f"{reader}: {attack} takes {short_s:.3f} s, and {long_s:.3f} s for {length} characters"
            assert long_s < max(NOTICED_S, MOST_TIMES * short_s), shown
            assert long_bytes < max(NOTICED_BYTES, MOST_TIMES * short_bytes), f"{shown}: {long_bytes:,.0f} bytes"
            short_s, short_bytes = long_s, long_bytes
