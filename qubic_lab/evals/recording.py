"""Ask a pipeline each question many times and keep the answers as they come: what votes are judged on.

A file holds what was said; which answers say the same and which are right is worked out anew whenever it is read.
"""

import json
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from qubic_lab.consensus.answers import final_answer
from qubic_lab.consensus.quality import judge_all
from qubic_lab.consensus.similarity import Embed, bonds, compare, group
from qubic_lab.core import Completion, Request, SamplingParams
from qubic_lab.errors import InputError, check_range
from qubic_lab.evals.questions import Question
from qubic_lab.evals.recorded import RecordedQuestion, RecordedSample, judge, read_recorded
from qubic_lab.pipeline.client import Pipeline

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the finished questions and all questions."""
MOST_SAMPLES = 32
MOST_FACTOR = 32
LEAST_LOGPROB = -50.0
"""Nats; stands for the mean log-probability of an answer without tokens, below what any other has."""


@dataclass(frozen=True)
class Asking:
    """How each question is asked: greedily, `samples` times by chance, and greedily with `factor` times the limit.

    Raises:
        InputError: a value is out of its range; without a temperature all samples would be copies.
    """

    samples: int = 5
    temperature: float = 0.7
    max_new_tokens: int = 48
    factor: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_range("samples", self.samples, 1, MOST_SAMPLES)
        check_range("factor", self.factor, 2, MOST_FACTOR)
        if not 0 < self.temperature <= 100:
            raise InputError(f"temperature is {self.temperature}: give one above 0, or all samples are copies")

    def greedy(self) -> SamplingParams:
        """Return how the greedy answer is made."""
        return SamplingParams(self.max_new_tokens)

    def longer(self) -> SamplingParams:
        """Return how the longer greedy answer is made."""
        return SamplingParams(self.factor * self.max_new_tokens)

    def sampled(self, number: int) -> SamplingParams:
        """Return how the samples of a question are made, given by its place: no two samples have the same seed."""
        seed = self.seed + number * MOST_SAMPLES
        return SamplingParams(self.max_new_tokens, temperature=self.temperature, seed=seed, logprobs=True)


def record_answers(
    pipeline: Pipeline,
    questions: Sequence[Question],
    asking: Asking,
    file: Path | None = None,
    progress: Progress | None = None,
    embed: Embed | None = None,
) -> tuple[RecordedQuestion, ...]:
    """Ask all questions, as many at once as the pipeline has slots for, and return judged and grouped answers.

    Args:
        pipeline: its slots must hold all samples of a question: they share its prompt, which is computed once.
        questions: with different ids.
        asking: how each is asked.
        file: answers are appended to it as they come, and those that it holds are not asked for again. Whoever names
            it makes sure that model and settings are the same.
        progress: called after each question.
        embed: as of `similarity.compare`.

    Raises:
        InputError: the slots are too few, or the file holds answers to other questions or of another number.
        QubicLabError: whatever the pipeline raises; the file keeps what there is.
    """
    if asking.samples > (slots := pipeline.config.slots):
        raise InputError(f"samples is {asking.samples}, but there are {slots} slots: give as many slots")
    known = {} if file is None else _kept(file, questions, asking)
    missing = [(number, each) for number, each in enumerate(questions) if each.id not in known]
    lock = threading.Lock()

    def ask(number: int, question: Question) -> None:
        row = _ask(pipeline, number, question, asking)
        with lock:
            known[row.id] = row
            if file is not None:
                with file.open("a", encoding="utf-8", newline="\n") as out:
                    out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            if progress:
                progress(f"asked {question.id}", len(known), len(questions))

    workers = max(1, pipeline.config.lanes * slots // asking.samples)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in as_completed([pool.submit(ask, *each) for each in missing]):
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return tuple(read_answers(question, known[question.id], embed) for question in questions)


def read_answers(question: Question, row: RecordedQuestion, embed: Embed | None = None) -> RecordedQuestion:
    """Return a recorded row with what each answer is worth and, of its samples, which say the same.

    Answers that should have no vote (empty, refusing and the like) are in no group.
    """
    texts = [sample.text for sample in row.samples]
    finals = [final_answer(text, row.question) for text in texts]
    similarities = compare(texts, embed)
    ends = ["length" if sample.cut else "stop" for sample in row.samples]
    qualities = judge_all(row.question, texts, ends, similarities, embed, finals)
    classes = group(similarities, bonds(finals, similarities))
    place = {index: number for number, members in enumerate(classes) for index in members if qualities[index].usable}

    def judged(sample: RecordedSample) -> RecordedSample:
        return replace(sample, right=judge(question, sample.text))

    return replace(
        row,
        reference=question.answer,
        greedy=judged(row.greedy),
        samples=tuple(replace(judged(each), group=place.get(index)) for index, each in enumerate(row.samples)),
        longer=tuple((factor, judged(sample)) for factor, sample in row.longer),
    )


def _ask(pipeline: Pipeline, number: int, question: Question, asking: Asking) -> RecordedQuestion:
    request = Request(prompt=question.question, sampling=asking.greedy())
    greedy = longer = pipeline.generate(request)
    if greedy.finish_reason == "length":  # else it has ended by itself, and more room changes nothing
        longer = pipeline.generate(replace(request, sampling=asking.longer(), forced_token_ids=greedy.token_ids))
    samples = pipeline.samples(replace(request, sampling=asking.sampled(number)), asking.samples)
    return RecordedQuestion(
        id=question.id,
        kind=question.kind,
        question=question.question,
        reference=question.answer,
        greedy=_sample(greedy),
        samples=tuple(map(_sample, samples)),
        longer=((asking.factor, _sample(longer)),),
    )


def _sample(completion: Completion) -> RecordedSample:
    """Return an answer as a sample; of those with log-probabilities the weight is that of the mean token."""
    cut = completion.finish_reason == "length"
    plain = RecordedSample(completion.text, len(completion.token_ids), cut=cut)
    if not completion.logprobs:
        return plain
    logprob = max(fmean(completion.logprobs), LEAST_LOGPROB)
    return replace(plain, weight=math.exp(logprob), signals=(("mean_logprob", logprob),))


def _kept(file: Path, questions: Sequence[Question], asking: Asking) -> dict[str, RecordedQuestion]:
    """Return the rows of an earlier, unfinished run, and leave the file without a line that was cut in its middle."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return {}
    whole = file.read_bytes().rpartition(b"\n")[0]
    if not whole:
        file.write_bytes(b"")
        return {}
    file.write_bytes(whole + b"\n")
    asked = {question.id: question.question for question in questions}
    rows = read_recorded(file)
    for row in rows:
        if asked.get(row.id) != row.question:
            raise InputError(f"{file} holds an answer to {row.id!r}, which is not asked so: give another file")
        if (len(row.samples), [factor for factor, _ in row.longer]) != (asking.samples, [asking.factor]):
            raise InputError(f"{file} holds {len(row.samples)} samples of {row.id!r}: give another file")
    return {row.id: row for row in rows}
