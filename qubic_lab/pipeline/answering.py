"""A request that is being answered: the engine's events become replies."""

import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from qubic_lab.core import FinishReason, Request
from qubic_lab.errors import DeadlineError, InputError, NonFiniteError, RequestCancelled
from qubic_lab.model.config import ModelConfig
from qubic_lab.model.layout import PAGE, stage_ranges
from qubic_lab.pipeline.schedule import Event, Limits, pairs_of
from qubic_lab.pipeline.text import TextStream, Tokenizer
from qubic_lab.wire import pipeline_pb2 as pb

TimedEvent: TypeAlias = tuple[Event, float]
Arrival: TypeAlias = "tuple[Call, list[TimedEvent] | None]"
"""What comes for a call: events, each with the time when it came, or None: the call was cancelled."""
Arrivals: TypeAlias = "queue.SimpleQueue[Arrival]"


@dataclass(frozen=True)
class Loaded:
    """The running model: the ranks' settings, its config, the scheduler's limits and its tokenizer."""

    settings: pb.Settings
    config: ModelConfig
    limits: Limits
    tokenizer: Tokenizer

    @property
    def slots(self) -> int:
        """Requests that can run at the same time."""
        return int(self.settings.lanes * self.settings.slots_per_lane)

    @property
    def most_tokens(self) -> int:
        """Tokens whose keys and values fit all requests together."""
        return self.limits.pages * PAGE or self.slots * self.limits.max_positions


class Call:
    """A running or waiting request with a number for each sample; what comes for it goes to `arrivals`.

    If its events are `gathered`, they arrive at the end of each sample, so that no thread wakes for a token.
    """

    def __init__(
        self,
        loaded: Loaded,
        numbers: range,
        id: str,
        arrivals: Arrivals,
        end_sample: Callable[[int], None],
        *,
        gathered: bool,
    ) -> None:
        self.loaded, self.numbers, self.id = loaded, numbers, id
        self._arrivals, self._end_sample, self._gathered = arrivals, end_sample, gathered
        self.started, self.started_monotonic = time.perf_counter(), time.monotonic()
        self.begun: float | None = None
        self.deadline = float("inf")
        self.finished = False
        self.tokens = self.prompt_tokens = 0
        self.carried: Mapping[str, str] = {}  # what names the request in other processes
        self.first_s: float | None = None  # when its first and its last token came
        self.last_s: float | None = None
        self.scores: list[Sequence[float]] = []  # of the prompt's tokens, the first one's successor first
        self._whole = False
        self._answers: dict[int, _Answer] = {}  # that have not ended
        self._batch: list[TimedEvent] = []

    @property
    def context_tokens(self) -> int:
        """Tokens whose keys and values are held; none while it waits."""
        return 0 if self.begun is None else len(self.numbers) * self.prompt_tokens + self.tokens

    @property
    def open(self) -> bool:
        """Whether there are replies to come."""
        return bool(self._answers)

    def prepare(self, message: pb.GenerateRequest, request: Request, prompt: tuple[int, ...]) -> Request | None:
        """Begin the answers; return what the engine has to compute, or None if the forced tokens are all of it.

        Raises:
            InputError: the answer ends before the last forced token.
        """
        self._whole, self.prompt_tokens = message.whole, len(prompt)
        if message.deadline_s:
            self.deadline = self.started + message.deadline_s
        self._answers = {number: _Answer(self.loaded, request, prompt, self, number) for number in self.numbers}
        first = self._answers[self.numbers.start]
        first.force(request.forced_token_ids)  # there are none if there are other samples
        if first.finish_reason is None:
            return request
        # The first replica was lost after its last token.
        if request.prompt_logprobs is None:
            self.finished = True
            self._arrivals.put((self, []))
            return None
        return replace(request, sampling=replace(request.sampling, max_new_tokens=0), forced_token_ids=())

    def take(self, event: Event) -> None:
        """Take an event from the engine, in its thread."""
        self.tokens += event.token is not None
        self.begun = self.begun or event.begun_s
        self.last_s = time.perf_counter()
        self.first_s = self.first_s or self.last_s
        self._batch.append((event, self.last_s))
        if not self._gathered or event.finish is not None or event.fault_rank is not None:
            self._arrivals.put((self, self._batch))
            self._batch = []

    def cancel(self) -> None:
        """End the request, in any thread; harmless at its end."""
        self._arrivals.put((self, None))

    def replies(self, batch: list[TimedEvent] | None) -> Iterator[pb.GenerateReply]:
        """Yield the replies to what arrived; once all answers have ended, `finished` is set before the last one.

        Raises:
            RequestCancelled, DeadlineError: it was cancelled, or its deadline has passed.
            NonFiniteError: a stage produced infinities or NaN.
        """
        if batch is None:
            raise RequestCancelled("the request was cancelled")
        if time.perf_counter() > self.deadline:
            limit_s = self.deadline - self.started
            raise DeadlineError(f"the answer took longer than its deadline of {limit_s:g} s")
        if self.finished and self._answers:
            yield pb.GenerateReply(end=self._answers.pop(self.numbers.start).end())
        for event, time_s in batch:
            if event.fault_rank is not None:
                raise NonFiniteError(_fault_text(event.fault_rank, self.loaded.settings))
            self.scores += event.scores
            answer = self._answers.get(event.request)
            if answer is None:  # a token after a stop text has ended its answer
                continue
            sample = event.request - self.numbers.start
            if event.token is None:  # a chunk of its prompt was scored
                if event.finish is None:
                    continue
                answer.finish_reason = answer.finish_reason or event.finish  # forced tokens may have ended it
            else:
                token = answer.add(event, time_s)
                if not self._whole:
                    yield pb.GenerateReply(sample=sample, token=token)
            if answer.finish_reason is not None:
                if event.finish is None:  # its text has ended it
                    self._end_sample(event.request)
                del self._answers[event.request]
                self.finished = not self._answers  # the client may disconnect after the last reply
                yield pb.GenerateReply(sample=sample, end=answer.end())


class _Answer:
    """The tokens of one answer so far, their text, and the times of the tokens that were computed here."""

    def __init__(self, loaded: Loaded, request: Request, prompt: tuple[int, ...], call: Call, number: int) -> None:
        self._number = number
        self._call = call
        self._tokenizer = loaded.tokenizer
        self._limits = loaded.limits
        self._sampling = request.sampling
        self._prompt = prompt
        self._text = TextStream(loaded.tokenizer.decode, request.sampling.stop)
        self._pieces: list[str] = []
        self._ends = frozenset() if request.sampling.ignore_eos else loaded.limits.eos_token_ids
        self._times: list[float] = []
        self._drafted = self._cached = 0
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self.finish_reason: str | None = None

    def force(self, tokens: Sequence[int]) -> None:
        """Add the first tokens of the answer, which the client already has.

        Raises:
            InputError: the answer ends before the last of them.
        """
        for count, token in enumerate(tokens, 1):
            if self.finish_reason is not None:
                raise InputError(
                    f"{len(tokens)} tokens are forced, but the answer ends with number {count - 1}: force no others"
                )
            self._take(token, self._limits.finish_reason(len(self._prompt), self._sampling, count, token))

    def add(self, event: Event, time_s: float) -> pb.Token:
        """Add a token that came at a time, and return it with the text that it completes."""
        assert event.token is not None
        self._times.append(time_s)
        self._drafted += event.drafted
        self._cached += event.cached
        if event.logprob is not None:
            self._logprobs.append(event.logprob)
        piece = self._take(event.token, event.finish)
        raw, top = self._tokenizer.raw(event.token), self._top(event.top_logprobs)
        return pb.Token(id=event.token, text=piece, logprob=event.logprob, top=top, raw=raw)

    def end(self) -> pb.End:
        """Return the whole answer, and the speed of what was computed here (0 if nothing was).

        The first new token comes after the forced ones were recomputed; tokens/s counts from it on.
        """
        ttft_s = tokens_per_s = 0.0
        queue_s = self._call.begun - self._call.started if self._call.begun else 0.0
        if count := len(self._times):
            first, last = self._times[0], self._times[-1]
            ttft_s = first - self._call.started
            tokens_per_s = (count - 1) / (last - first) if count > 1 else 1 / ttft_s
        return pb.End(
            text="".join(self._pieces),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self._prompt),
            ttft_ms=ttft_s * 1000,
            queue_ms=queue_s * 1000,
            tokens_per_s=tokens_per_s,
            request=self._number,
            token_ids=self._tokens,
            logprobs=self._logprobs,
            prompt=self._scored_prompt(),
            drafted_tokens=self._drafted,
            cached_tokens=self._cached,
        )

    def _scored_prompt(self) -> list[pb.ScoredToken]:
        """Return the tokens of the prompt, if they were scored; the last row of scores is of what comes after them."""
        if not self._call.scores:
            return []
        first, *others = [pb.ScoredToken(id=token, raw=self._tokenizer.raw(token)) for token in self._prompt]
        for token, row in zip(others, self._call.scores, strict=False):
            token.logprob = row[0]
            token.top.extend(self._top(pairs_of(row)))
        return [first, *others]

    def _top(self, pairs: Sequence[tuple[int, float]]) -> list[pb.TopToken]:
        return [pb.TopToken(id=token, logprob=logprob, raw=self._tokenizer.raw(token)) for token, logprob in pairs]

    def _take(self, token: int, finish: FinishReason | None) -> str:
        """Record a token and its finish reason; return the text that it completes."""
        self._tokens.append(token)
        self.finish_reason = finish
        piece = "" if token in self._ends else self._text.add(token)
        if self._text.stopped:
            self.finish_reason = "stop"
        elif finish is not None:
            piece += self._text.end()
            self.finish_reason = "stop" if self._text.stopped else finish
        self._pieces.append(piece)
        return piece


def _fault_text(rank: int, settings: pb.Settings) -> str:
    stage = stage_ranges(tuple(settings.layers))[rank]
    return (
        f"stage {rank} ({stage}) produced non-finite values in {settings.dtype}: "
        "the weights are damaged or overflow; try --dtype fp32"
    )
