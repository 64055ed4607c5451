"""The gRPC service of rank 0: accepts requests as text or token ids, and streams tokens or sends whole answers."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from qubic_lab.core import MAX_SEED, ChatMessage, FinishReason, Request, SamplingParams
from qubic_lab.errors import (
    BusyError,
    ContextError,
    DeadlineError,
    InputError,
    NonFiniteError,
    QubicLabError,
    RequestCancelled,
)
from qubic_lab.model.config import ModelConfig, load_config
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.calls import NO_PROGRESS_S, SERVICE
from qubic_lab.pipeline.config import MOST_WAITING
from qubic_lab.pipeline.engine import PREFILL_CHUNK, Engine, Replies
from qubic_lab.pipeline.member import StageSettings
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.pipeline.schedule import Event, Limits, Sibling, pairs_of
from qubic_lab.pipeline.text import TextStream, Tokenizer
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import SERVER_OPTIONS, RefuseMalformed, TlsFiles, listen, status_of
from qubic_lab.wire.services import PIPELINE_SERVICE, add_service

MOST_THREADS = 256
"""Threads for other calls, in addition to one thread for each streaming request."""
MOST_REQUESTS = 224
MOST_SCORES = 2**19
"""Log-probabilities of one prompt, which go in one message: its tokens, each with its likeliest ones."""
MOST_WATCHERS = 64
"""Clients that may watch the health service; each has its own thread."""
POLL_S = 0.5

Reply = TypeVar("Reply")
TimedEvent = tuple[Event, float]


@dataclass(frozen=True)
class _Loaded:
    """The running model: the ranks' settings, its config, the scheduler's limits and its tokenizer."""

    settings: pb.Settings
    config: ModelConfig
    limits: Limits
    tokenizer: Tokenizer

    @property
    def slots(self) -> int:
        return int(self.settings.lanes * self.settings.slots_per_lane)


@dataclass
class _Live:
    """A running or waiting request with a number for each sample.

    Its events come in batches, each event with the time when it came; None instead of a batch means cancelled. If they
    are `gathered`, a batch comes at the end of each sample, so that no thread wakes for a token.
    """

    numbers: range
    id: str
    gathered: bool = False
    started: float = field(default_factory=time.perf_counter)
    begun: float | None = None
    batches: "queue.SimpleQueue[list[TimedEvent] | None]" = field(default_factory=queue.SimpleQueue)
    finished: bool = False
    tokens: int = 0
    scores: list[Sequence[float]] = field(
        default_factory=list
    )  # of the prompt's tokens, the first one's successor first
    _batch: list[TimedEvent] = field(default_factory=list)

    def take(self, event: Event) -> None:
        """Take an event from the engine, in its thread."""
        self.tokens += event.token is not None
        self.begun = self.begun or event.begun_s
        self._batch.append((event, time.perf_counter()))
        if not self.gathered or event.finish is not None or event.fault_rank is not None:
            self.batches.put(self._batch)
            self._batch = []

    def cancel(self) -> None:
        """End the request, in any thread; harmless at its end."""
        self.batches.put(None)


class PipelineService:
    """Turns calls into the engine's commands and its events into replies."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        # Not "non-blocking", which deadlocks if a watcher disconnects while the state changes (grpc#43403).
        self.health = health.HealthServicer(
            experimental_non_blocking=False,
            experimental_thread_pool=futures.ThreadPoolExecutor(MOST_WATCHERS, "health"),
        )
        self._lock = threading.Lock()  # guards what follows
        self._loaded: _Loaded | None = None
        self._live: dict[int, _Live] = {}  # by the first of their numbers
        self._finished = self._failed = self._tokens = 0
        self._next_number = 0
        self._started = time.monotonic()
        self._set_health(serving=False)

    def Configure(self, request: pb.Settings, context: grpc.ServicerContext) -> pb.Description:
        """Load a model into the ranks."""
        return _answer(context, lambda: self.configure(request))

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.Description:
        """Return the loaded model and the memory of the ranks."""
        return _answer(context, lambda: self._description(self._engine.report()))

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        """Answer one request, token by token."""
        try:
            yield from self._generate(request, context)
        except QubicLabError as error:
            context.abort(status_of(error), str(error))

    def Cancel(self, request: pb.CancelRequest, context: grpc.ServicerContext) -> pb.CancelReply:
        """Cancel a request by its id."""
        with self._lock:
            found = [live for live in self._live.values() if live.id == request.id and request.id]
        for live in found:
            live.cancel()
        return pb.CancelReply(found=bool(found))

    def Stats(self, request: pb.StatsRequest, context: grpc.ServicerContext) -> pb.StatsReply:
        """Return the load."""
        with self._lock:
            return pb.StatsReply(
                slots=self._loaded.slots if self._loaded else 0,
                requests=len(self._live),
                most_requests=self._most_requests(),
                finished=self._finished,
                failed=self._failed,
                tokens=self._tokens + sum(live.tokens for live in self._live.values()),
                uptime_s=time.monotonic() - self._started,
            )

    def configure(self, message: pb.Settings) -> pb.Description:
        """Load a model, or another shape of the running one, into the ranks.

        Raises:
            BusyError: there are running or waiting requests.
            InputError, ModelError: the settings cannot be used; no model is loaded then.
        """
        with self._lock:  # held while loading, so that new requests wait for the new model
            if self._live:
                raise BusyError(f"the pipeline answers {len(self._live)} requests: configure it when they are done")
            before, self._loaded = self._loaded, None
            self._set_health(serving=False)
            if not 1 <= message.slots_per_lane <= MAX_SLOTS or message.lanes < 1:
                raise InputError(
                    f"{message.lanes} lanes of {message.slots_per_lane} slots: give at least 1 of each, "
                    f"at most {MAX_SLOTS} slots"
                )
            folder = text_folder(resolve_model(message.model_folder))  # by name: hosts may keep models elsewhere
            config = load_config(folder)
            limits = Limits(
                message.lanes,
                message.slots_per_lane,
                PREFILL_CHUNK,
                config.max_positions,
                frozenset(config.eos_token_ids),
            )
            replies = self._engine.configure(_stage_settings(message), limits)
            same_model = before is not None and before.settings.model_folder == message.model_folder
            tokenizer = before.tokenizer if before and same_model else Tokenizer(folder)
            self._loaded = _Loaded(message, config, limits, tokenizer)
            self._set_health(serving=True)
        return self._description(replies)

    def _generate(self, message: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        request = _request(message)
        gathered = message.whole and not request.sampling.stop  # a stop text ends its answer as soon as it comes
        with self._admitted(message.id, max(1, message.samples), gathered) as (live, loaded):
            _check_model(message.model, loaded)
            prompt = loaded.tokenizer.encode(request)
            _check_prompt(prompt, request, loaded.config)
            _check_forced(request.forced_token_ids, len(prompt), loaded.config)
            open_answers = {number: _Answer(loaded, request, prompt, live, number) for number in live.numbers}
            first = open_answers[live.numbers.start]
            first.force(request.forced_token_ids)  # there are none if there are other samples
            if first.finish_reason is not None:  # the first replica was lost after its last token
                if request.prompt_logprobs is None:
                    live.finished = True
                    yield pb.GenerateReply(end=first.end())
                    return
                request = replace(request, sampling=replace(request.sampling, max_new_tokens=0), forced_token_ids=())
            self._submit(live, prompt, request)
            context.add_callback(live.cancel)  # when the client disconnects
            deadline = live.started + message.deadline_s if message.deadline_s else float("inf")
            for event, time_s in self._events(live, deadline, loaded):
                live.scores += event.scores
                answer = open_answers.get(event.request)
                if answer is None:  # a token after a stop text has ended its answer
                    continue
                sample = event.request - live.numbers.start
                if event.token is None:  # a chunk of its prompt was scored
                    if event.finish is None:
                        continue
                    answer.finish_reason = answer.finish_reason or event.finish  # forced tokens may have ended it
                else:
                    token = answer.add(event, time_s)
                    if not message.whole:
                        yield pb.GenerateReply(sample=sample, token=token)
                if answer.finish_reason is not None:
                    self._engine.cancel(event.request)
                    del open_answers[event.request]
                    live.finished = not open_answers  # the client may disconnect after the last reply
                    yield pb.GenerateReply(sample=sample, end=answer.end())

    def _submit(self, live: _Live, prompt: tuple[int, ...], request: Request) -> None:
        first, *others = live.numbers
        sampling = request.sampling
        siblings = [
            Sibling(number, replace(sampling, seed=(sampling.seed + number - first) % (MAX_SEED + 1)))
            for number in others
        ]
        self._engine.submit(
            first, prompt, sampling, live.take, siblings, request.forced_token_ids, request.prompt_logprobs
        )

    @contextmanager
    def _admitted(self, request_id: str, samples: int, gathered: bool) -> "Iterator[tuple[_Live, _Loaded]]":
        """Admit a request or refuse it; when it ends, in whatever way, free its slot."""
        with self._lock:
            loaded = self._loaded
            if loaded is None:
                raise InputError("the pipeline has no model: configure it first")
            if len(self._live) >= self._most_requests():
                raise BusyError(f"{loaded.slots} requests run and {MOST_WAITING} are waiting: try again later")
            if request_id and any(live.id == request_id for live in self._live.values()):
                raise InputError(f"request id {request_id!r} is in use: give another")
            most = min(loaded.slots, MAX_SLOTS)  # the end of their prompt is one micro-batch
            if samples > most:
                raise InputError(f"samples is {samples}: this pipeline answers at most {most} at once")
            live = _Live(range(self._next_number, self._next_number + samples), request_id, gathered)
            self._next_number += samples
            self._live[live.numbers.start] = live
        try:
            yield live, loaded
        finally:
            for number in live.numbers:
                self._engine.cancel(number)
            with self._lock:
                del self._live[live.numbers.start]
                self._finished += live.finished
                self._failed += not live.finished
                self._tokens += live.tokens

    def _events(self, live: _Live, deadline: float, loaded: _Loaded) -> Iterator[TimedEvent]:
        """Yield a request's events and their times until it is finished, as long as there is progress and time."""
        since = time.monotonic()
        while not live.finished:
            batch: list[TimedEvent] | None = []
            try:
                batch = live.batches.get(timeout=max(0.0, min(POLL_S, deadline - time.perf_counter())))
            except queue.Empty:
                if time.monotonic() - max(since, self._engine.progressed_at) > NO_PROGRESS_S:
                    raise DeadlineError(f"no progress for {NO_PROGRESS_S:.0f} s: a rank hangs") from None
            if batch is None:
                raise RequestCancelled("the request was cancelled")
            if time.perf_counter() > deadline:
                raise DeadlineError(f"the answer took longer than its deadline of {deadline - live.started:g} s")
            for event, time_s in batch:
                if event.fault_rank is not None:
                    raise NonFiniteError(_fault_text(event.fault_rank, loaded.settings))
                yield event, time_s

    def _description(self, replies: Replies) -> pb.Description:
        settings = self._loaded.settings if self._loaded else None
        return pb.Description(settings=settings, ranks=[pb.RankDescription(**reply) for reply in replies])

    def _most_requests(self) -> int:
        return min(MOST_REQUESTS, (self._loaded.slots if self._loaded else 0) + MOST_WAITING)

    def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            self.health.set(service, status)


class _Answer:
    """The tokens of one answer so far, their text, and the times of the tokens that were computed here."""

    def __init__(self, loaded: _Loaded, request: Request, prompt: tuple[int, ...], live: _Live, number: int) -> None:
        self._number = number
        self._live = live
        self._tokenizer = loaded.tokenizer
        self._limits = loaded.limits
        self._sampling = request.sampling
        self._prompt = prompt
        self._text = TextStream(loaded.tokenizer.decode, request.sampling.stop)
        self._pieces: list[str] = []
        self._ends = frozenset() if request.sampling.ignore_eos else loaded.limits.eos_token_ids
        self._times: list[float] = []
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
        queue_s = self._live.begun - self._live.started if self._live.begun else 0.0
        if count := len(self._times):
            first, last = self._times[0], self._times[-1]
            ttft_s = first - self._live.started
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
        )

    def _scored_prompt(self) -> list[pb.ScoredToken]:
        """Return the tokens of the prompt, if they were scored; the last row of scores is of what comes after them."""
        if not self._live.scores:
            return []
        first, *others = [pb.ScoredToken(id=token, raw=self._tokenizer.raw(token)) for token in self._prompt]
        for token, row in zip(others, self._live.scores, strict=False):
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


def start_server(engine: Engine, address: str, tls: TlsFiles | None = None) -> tuple[grpc.Server, PipelineService]:
    """Serve an engine at `unix:/path` or `host:port`; the caller must run the engine's loop.

    Raises:
        InputError: the address is in use, or is not on this host and there is no TLS.
    """
    pool = futures.ThreadPoolExecutor(MOST_THREADS, "client")
    server = grpc.server(pool, interceptors=[RefuseMalformed()], options=SERVER_OPTIONS)
    service = PipelineService(engine)
    add_service(server, PIPELINE_SERVICE, service)
    health_pb2_grpc.add_HealthServicer_to_server(service.health, server)
    listen(server, address, tls)
    server.start()
    return server, service


def _answer(context: grpc.ServicerContext, call: Callable[[], Reply]) -> Reply:
    try:
        return call()
    except QubicLabError as error:
        context.abort(status_of(error), str(error))
        raise  # never reached: abort raises


def _stage_settings(message: pb.Settings) -> StageSettings:
    values = {field.name: getattr(message, field.name) for field in fields(StageSettings)}
    return StageSettings(**values | {"layers": tuple(message.layers)})


def _request(message: pb.GenerateRequest) -> Request:
    s = message.sampling
    sampling = SamplingParams(
        s.max_new_tokens,
        s.temperature,
        s.top_p,
        s.top_k,
        s.seed,
        s.ignore_eos,
        tuple(s.stop),
        s.logprobs,
        s.top_logprobs,
        s.min_p,
        s.presence_penalty,
        s.frequency_penalty,
        tuple(sorted(s.logit_bias.items())),
    )
    if not 0.0 <= message.deadline_s < float("inf"):
        raise InputError(f"deadline_s is {message.deadline_s}: it must be 0 (none) or more seconds")
    if message.forced_token_ids and message.samples > 1:
        raise InputError(
            f"tokens are forced and samples is {message.samples}: request each sample alone, with its own seed"
        )
    if message.samples > 1 and not s.max_new_tokens:
        raise InputError(f"samples is {message.samples} and max_new_tokens is 0: score a prompt once")
    return Request(
        message.prompt,
        tuple(message.token_ids),
        message.raw,
        sampling,
        tuple(message.forced_token_ids),
        tuple(ChatMessage(each.role, each.content) for each in message.messages),
        message.prompt_logprobs if message.HasField("prompt_logprobs") else None,
    )


def _check_model(asked: str, loaded: _Loaded) -> None:
    if asked not in ("", loaded.settings.model, loaded.settings.model_folder):
        raise InputError(f"model {asked!r} is not loaded: this pipeline runs {loaded.settings.model!r}")


def _check_prompt(prompt: tuple[int, ...], request: Request, config: ModelConfig) -> None:
    sampling, top = request.sampling, request.prompt_logprobs
    if not prompt:
        raise InputError("the prompt has no tokens: give at least one")
    if len(prompt) + bool(sampling.max_new_tokens) > config.max_positions:
        raise ContextError(
            f"the prompt has {len(prompt)} tokens, the model's context is {config.max_positions}: give a shorter one"
        )
    if top is not None and (scores := len(prompt) * (1 + top)) > MOST_SCORES:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, with the {top} likeliest each: {scores:,} log-probabilities, at "
            f"most {MOST_SCORES:,} can be sent, so ask for fewer likeliest ones, or give a shorter prompt"
        )
    if (largest := max(prompt)) >= config.vocab:
        raise InputError(f"token id {largest} is not in the vocabulary of {config.vocab}")
    if (largest := max((token for token, _ in sampling.logit_bias), default=0)) >= config.vocab:
        raise InputError(f"logit_bias's token id {largest} is not in the vocabulary of {config.vocab}")


def _check_forced(forced: tuple[int, ...], prompt_tokens: int, config: ModelConfig) -> None:
    if (largest := max(forced, default=0)) >= config.vocab:
        raise InputError(
            f"forced token id {largest} is not in the vocabulary of {config.vocab}: replay with the same model"
        )
    if prompt_tokens + len(forced) > config.max_positions:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens and {len(forced)} are forced, the model's context is "
            f"{config.max_positions}: replay with the same model"
        )


def _fault_text(rank: int, settings: pb.Settings) -> str:
    stage = stage_ranges(tuple(settings.layers))[rank]
    return (
        f"stage {rank} ({stage}) produced non-finite values in {settings.dtype}: "
        "the weights are damaged or overflow; try --dtype fp32"
    )
