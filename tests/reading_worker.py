"""The readers of foreign text, in a process that can be killed: answers how long one takes, and how much memory."""

import gc
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qubic_lab.api.access import _name_of, find_token
from qubic_lab.checked_yaml import read_yaml
from qubic_lab.consensus import symbolic
from qubic_lab.consensus.aggregate import VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.answers import before_cut, final_answer
from qubic_lab.consensus.dates import find_dates
from qubic_lab.consensus.quantities import plain, plain_quantities, spelled_out
from qubic_lab.consensus.question_form import read_question
from qubic_lab.consensus.voting import AnswerSource, Vote
from qubic_lab.core import SamplingParams
from qubic_lab.errors import QubicLabError
from qubic_lab.evals.loaders import load_user_questions
from qubic_lab.evals.questions import Question
from qubic_lab.evals.scoring import judge
from qubic_lab.killable import answer_lines
from qubic_lab.oracle.ingest.bar_files import BarOptions, read_bars
from qubic_lab.oracle.ingest.text_files import TextOptions, read_texts
from qubic_lab.oracle.ingest.validation import plain_text, read_date
from qubic_lab.oracle.model.coins import mentioned
from qubic_lab.oracle.sentiment.labelled import Columns, read_labelled
from qubic_lab.oracle.sentiment.lexicon import crypto_lexicon
from qubic_lab.oracle.sentiment.scores import sentences_of
from qubic_lab.oracle.store.text_store import fingerprint
from qubic_lab.oracle.store.transactions import read_cursor
from qubic_lab.votes.history import _read_cursor
from qubic_lab.wire.channel import read_host

NOW_US = 1_800_000_000_000_000
QUESTION = "How many km is it from A to B? (A) 12 (B) 15"
FOLDER = Path(tempfile.mkdtemp())


def votes_of(*texts: str) -> list[Vote]:
    """Make a vote of each text."""
    source = AnswerSource("", "", SamplingParams())
    return [Vote(f"v{n}", f"v{n}", "", source, text, "stop", 1, 0.0) for n, text in enumerate(texts)]


def count(text: str) -> None:
    """Hold a vote on a text and on others that differ from it a little."""
    deliberate("Why?", votes_of(text, f"{text} 13", f"No, {text}", "12"), (), VoteContext(), VotingConfig(merge=True))


def in_file(read: Callable[[Path], Any], ending: str) -> Callable[[str], Any]:
    """Return a reader of the text of a file."""

    def reader(text: str) -> None:
        path = FOLDER / f"file{ending}"
        path.write_text(text, encoding="utf-8", errors="replace")
        read(path)

    return reader


READERS: dict[str, Callable[[str], Any]] = {
    "answer": lambda text: (final_answer(text, QUESTION), final_answer(text), before_cut(text)),
    "vote": count,
    "question": read_question,
    "score": lambda text: [judge(Question("a", QUESTION, answer), text) for answer in ("12 km", "x^2", "A or B")],
    "formula": lambda text: (symbolic.formula(text), symbolic.latex(text)),
    "quantity": lambda text: (plain_quantities(plain(text)), spelled_out(plain(text))),
    "date": lambda text: (find_dates(plain(text)), read_date(text)),
    "HTML": plain_text,
    "coins": lambda text: (mentioned(text), fingerprint(text[:100], text)),
    "sentiment": lambda text: (crypto_lexicon().read(text), sentences_of(text)),
    "cursor": lambda text: [read(text) for read in (lambda text: read_cursor(text, 2), _read_cursor)],
    "header": lambda text: (_name_of(text), find_token(text, []), read_host(text)),
    "YAML": in_file(read_yaml, ".yaml"),
    "questions in CSV": in_file(load_user_questions, ".csv"),
    "questions in JSON": in_file(load_user_questions, ".jsonl"),
    "bars in CSV": in_file(lambda path: read_bars(path, BarOptions(coin="bitcoin"), NOW_US), ".csv"),
    "bars in JSON": in_file(lambda path: read_bars(path, BarOptions(coin="bitcoin"), NOW_US), ".json"),
    "texts in CSV": in_file(lambda path: read_texts(path, TextOptions(), NOW_US), ".csv"),
    "labels in CSV": in_file(lambda path: read_labelled(path, Columns()), ".csv"),
}


def cost(question: dict[str, Any]) -> list[float]:
    """Return the seconds of processor time that a reader takes for a text, and the bytes that it needs meanwhile."""
    read, text = READERS[question["reader"]], question["text"]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = _resident("VmRSS"), time.process_time()
    with suppress(QubicLabError):
        read(text)
    return [time.process_time() - started, max(0, _resident("VmHWM") - before)]


def _resident(name: str) -> int:
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    symbolic.canonical = lambda formula: None  # has processes and a time limit of its own
    count("once, so that everything is imported")
    gc.freeze()  # collections need not look at all modules again and again
    answer_lines(cost)
