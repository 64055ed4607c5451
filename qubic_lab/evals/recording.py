"""Asks a pipeline each question many times and stores the answers as they arrive, to judge votes on.

The file holds only texts; groups and correctness are computed whenever it is read.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean

from qubic_lab.checked_yaml import STRICT
from qubic_lab.consensus.answers import before_cut
from qubic_lab.consensus.quality import judge_all
from qubic_lab.consensus.similarity import bonds, compare, group
from qubic_lab.core import Completion, Progress, Request, SamplingParams, no_progress
from qubic_lab.errors import ContextError, InputError, check_range
from qubic_lab.evals.questions import Question
from qubic_lab.evals.recorded import RecordedQuestion, RecordedSample, read_recorded
from qubic_lab.evals.scoring import judge, read_answer
from qubic_lab.pipeline.client import Pipeline

logger = logging.getLogger(__name__)
MOST_SAMPLES = 32
MOST_FACTOR = 32
LEAST_LOGPROB = -50.0
"""Nats; stands for the mean log probability of an answer without tokens."""


@dataclass(frozen=True)
class Asking:
    """How a question is asked: greedily, `samples` times at random, and greedily with `factor` times the token limit.

    Raises:
        InputError: a value is out of its range; without a temperature all samples would be copies.
    """

    __pydantic_config__ = STRICT
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


def record_answers(
    pipeline: Pipeline,
    questions: Sequence[Question],
    asking: Asking,
    file: Path | None = None,
    progress: Progress = no_progress,
) -> tuple[RecordedQuestion, ...]:
    """Ask all questions, as many at once as the pipeline has slots for, and return judged and grouped answers.

    The samples of a question share one computation of its prompt. Answers are appended to `file` as they arrive, and
    stored ones are not asked for again; the caller ensures that model and settings are the same. Questions that are
    longer than the model's context are left out, and logged.

    Raises:
        InputError: too few slots for the samples, or the file holds answers to other questions or of another number.
        QubicLabError: whatever the pipeline raises; the file keeps the answers so far.
    """
    if asking.samples > (slots := pipeline.config.slots):
        raise InputError(f"samples is {asking.samples}, but there are {slots} slots: give as many slots")
    known = {} if file is None else _kept(file, questions, asking)
    missing = [(number, each) for number, each in enumerate(questions) if each.id not in known]
    lock = threading.Lock()

    def ask(number: int, question: Question) -> None:
        try:
            row = ask_question(pipeline, number, question, asking)
        except ContextError as error:
            logger.warning("question %s is left out: %s", question.id, error)
            return
        with lock:
            known[row.id] = row
            if file is not None:
                with file.open("a", encoding="utf-8", newline="\n") as out:
                    out.write(json.dumps(asdict(row), ensure_ascii=False) + "\n")
            progress(f"asked {question.id}", len(known), len(questions))

    workers = max(1, pipeline.config.lanes * slots // asking.samples)
    with ThreadPoolExecutor(workers) as pool:
        try:
            for done in as_completed([pool.submit(ask, *each) for each in missing]):
                done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    if not known:
        raise InputError("every question is longer than the model's context: take another model, or shorter questions")
    return tuple(read_answers(question, known[question.id]) for question in questions if question.id in known)


def read_answers(question: Question, row: RecordedQuestion) -> RecordedQuestion:
    """Return a recorded row with each answer judged, and its samples grouped but for unusable ones.

    Of a cut answer only what it had concluded is read, whether it is judged or has a vote.
    """
    texts = [sample.text for sample in row.samples]
    finals = [
        read_answer(before_cut(each.text, row.question) if each.cut else each.text, row.question)
        for each in row.samples
    ]
    similarities = compare(texts)
    ends = ["length" if sample.cut else "stop" for sample in row.samples]
    qualities = judge_all(row.question, texts, ends, finals, similarities)
    classes = group(similarities, bonds(finals, similarities))
    place = {index: number for number, members in enumerate(classes) for index in members if qualities[index].usable}

    def judged(sample: RecordedSample) -> RecordedSample:
        return replace(sample, right=judge(question, sample.text, sample.cut))

    return replace(
        row,
        reference=question.answer,
        greedy=judged(row.greedy),
        samples=tuple(replace(judged(each), group=place.get(index)) for index, each in enumerate(row.samples)),
        longer=tuple((factor, judged(sample)) for factor, sample in row.longer),
    )


def ask_question(pipeline: Pipeline, number: int, question: Question, asking: Asking) -> RecordedQuestion:
    """Ask one question, whose place in its plan decides the seeds; its answers are not judged yet."""
    limit, seed = asking.max_new_tokens, asking.seed + number * MOST_SAMPLES  # no two samples share a seed
    request = Request(prompt=question.question, sampling=SamplingParams(limit))
    greedy = longer = pipeline.generate(request)
    if greedy.finish_reason == "length":  # otherwise it ended by itself, and a higher limit changes nothing
        sampling = SamplingParams(asking.factor * limit)
        longer = pipeline.generate(replace(request, sampling=sampling, forced_token_ids=greedy.token_ids))
    sampling = SamplingParams(limit, temperature=asking.temperature, seed=seed, logprobs=True)
    samples = pipeline.samples(replace(request, sampling=sampling), asking.samples)
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
    """Return an answer as a sample; with log probabilities its weight is that of the mean token."""
    cut = completion.finish_reason == "length"
    plain = RecordedSample(completion.text, len(completion.token_ids), cut=cut)
    if not completion.logprobs:
        return plain
    logprob = max(fmean(completion.logprobs), LEAST_LOGPROB)
    return replace(plain, weight=math.exp(logprob), signals=(("mean_logprob", logprob),))


def _kept(file: Path, questions: Sequence[Question], asking: Asking) -> dict[str, RecordedQuestion]:
    """Return the rows of an earlier, unfinished run, and remove a truncated last line from its file."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        return {}
    whole = file.read_bytes().rpartition(b"\n")[0]
    os.truncate(file, len(whole) + 1 if whole else 0)
    if not whole:
        return {}
    asked = {question.id: question.question for question in questions}
    rows = read_recorded(file)
    for row in rows:
        if asked.get(row.id) != row.question:
            raise InputError(f"{file} holds an answer to {row.id!r}, whose question is different: give another file")
        if (len(row.samples), [factor for factor, _ in row.longer]) != (asking.samples, [asking.factor]):
            raise InputError(f"{file} holds {len(row.samples)} samples of {row.id!r}: give another file")
    return {row.id: row for row in rows}
