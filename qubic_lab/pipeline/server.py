"""The gRPC service of rank 0: accepts requests as text or token ids, and streams tokens or sends whole answers."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from qubic_lab.core import MAX_SEED, ChatMessage, Request, SamplingParams
from qubic_lab.errors import BusyError, ContextError, DeadlineError, InputError, QubicLabError
from qubic_lab.model.config import load_config
from qubic_lab.model.layout import PAGE
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.split import text_folder
from qubic_lab.pipeline.answering import Arrival, Arrivals, Call, Loaded
from qubic_lab.pipeline.calls import NO_PROGRESS_S, SERVICE
from qubic_lab.pipeline.config import MOST_DRAFTED, MOST_WAITING
from qubic_lab.pipeline.engine import PREFILL_CHUNK, Engine, Replies
from qubic_lab.pipeline.listening import Listener
from qubic_lab.pipeline.member import StageSettings
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.pipeline.request_spans import RequestTimes, tell_request
from qubic_lab.pipeline.schedule import Limits, Sibling
from qubic_lab.pipeline.text import Tokenizer
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import SERVER_OPTIONS, RefuseMalformed, TlsFiles, listen, status_of
from qubic_lab.wire.services import PIPELINE_SERVICE, add_service

MOST_THREADS = 256
"""Threads for other calls, in addition to one thread for each streaming request."""
MOST_REQUESTS = 224
MOST_SCORES = 2**19
"""Log-probabilities of one prompt, which go in one message: its tokens, each with its likeliest ones."""
MOST_LISTENERS = 16
"""Clients that share a stream among their requests; each holds a thread."""
MOST_WATCHERS = 64
"""Clients that may watch the health service; each has its own thread."""
POLL_S = 0.5

Reply = TypeVar("Reply")

logger = logging.getLogger(__name__)


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
        self._loaded: Loaded | None = None
        self._live: dict[int, Call] = {}  # by the first of their numbers
        self._listeners: dict[str, Listener] = {}
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

    def Listen(self, request: pb.ListenRequest, context: grpc.ServicerContext) -> Iterator[pb.Heard]:
        """Answer what is submitted to a listener."""
        try:
            with self._listening(request.listener) as listener:
                context.add_callback(listener.close)  # when the client disconnects
                yield pb.Heard()
                while context.is_active():
                    parts = self._parts(listener)
                    scores = [part for part in parts if part.reply.end.prompt]  # each as large as a message may be
                    if len(parts) > len(scores):
                        yield pb.Heard(parts=[part for part in parts if not part.reply.end.prompt])
                    yield from (pb.Heard(parts=[part]) for part in scores)
        except QubicLabError as error:
            context.abort(status_of(error), str(error))

    def Submit(self, request: pb.Submission, context: grpc.ServicerContext) -> pb.Submitted:
        """Begin a request of a listener."""

        def submit() -> pb.Submitted:
            listener = self._listener(request.listener)
            self._begin(request.request, context, listener.arrivals, lambda call: listener.add(call, request.call))
            return pb.Submitted()

        return _answer(context, submit)

    def Cancel(self, request: pb.CancelRequest, context: grpc.ServicerContext) -> pb.CancelReply:
        """Cancel a request by its id, or by its listener and number."""
        with self._lock:
            found = [call for call in self._live.values() if call.id == request.id and request.id]
            if listener := self._listeners.get(request.listener):
                found += [call for call in listener.calls() if listener.number_of(call) == request.call]
        for call in found:
            call.cancel()
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
                tokens=self._tokens + sum(call.tokens for call in self._live.values()),
                uptime_s=time.monotonic() - self._started,
                context_tokens=sum(call.context_tokens for call in self._live.values()),
                most_context_tokens=self._loaded.most_tokens if self._loaded else 0,
                ranks=[pb.RankCounts(**each) for each in self._engine.counts],
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
                most_drafted=MOST_DRAFTED if message.speculation else 0,
                draft_always=message.speculation == "always",
                pages=-(-message.kv_tokens // PAGE),
                prefix_caching=message.prefix_caching,
            )
            same_model = before is not None and before.settings.model_folder == message.model_folder
            with futures.ThreadPoolExecutor(1) as pool:  # the tokenizer is read beside the weights
                reading = pool.submit(lambda: before.tokenizer if before and same_model else Tokenizer(folder))
                replies = self._engine.configure(_stage_settings(message), limits)
                tokenizer = reading.result()
            limits = self._engine.limits
            message.kv_tokens = limits.pages * PAGE
            self._loaded = Loaded(message, config, limits, tokenizer)
            self._set_health(serving=True)
        return self._description(replies)

    def _generate(self, message: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        arrivals: Arrivals = queue.SimpleQueue()
        call = self._begin(message, context, arrivals)
        try:
            context.add_callback(call.cancel)  # when the client disconnects
            while call.open:
                arrived = _taken(arrivals, call.deadline)
                if not arrived:
                    self._check_progress(call)
                for _, batch in arrived or [(call, [])]:
                    yield from call.replies(batch)
        finally:
            self._end(call)

    def _begin(
        self,
        message: pb.GenerateRequest,
        context: grpc.ServicerContext,
        arrivals: Arrivals,
        begun: Callable[[Call], None] = lambda call: None,
    ) -> Call:
        """Admit a request or refuse it, tell `begun`, and submit it; whoever gets the call has to end it."""
        request = _request(message)
        gathered = message.whole and not request.sampling.stop  # a stop text ends its answer as soon as it comes
        call = self._admit(message.id, max(1, message.samples), arrivals, gathered)
        call.carried = {str(name): str(value) for name, value in context.invocation_metadata() or ()}
        try:
            loaded = call.loaded
            _check_model(message.model, loaded)
            prompt = loaded.tokenizer.encode(request)
            _check_prompt(prompt, request, loaded)
            _check_room(len(prompt), max(1, message.samples), loaded.limits)
            _check_forced(request.forced_token_ids, len(prompt), loaded)
            computed = call.prepare(message, request, prompt)
            begun(call)
            if computed is not None:
                self._submit(call, prompt, computed)
        except BaseException:
            self._end(call)
            raise
        return call

    def _submit(self, call: Call, prompt: tuple[int, ...], request: Request) -> None:
        first, *others = call.numbers
        sampling = request.sampling
        siblings = [
            Sibling(number, replace(sampling, seed=(sampling.seed + number - first) % (MAX_SEED + 1)))
            for number in others
        ]
        self._engine.submit(
            first, prompt, sampling, call.take, siblings, request.forced_token_ids, request.prompt_logprobs
        )

    def _admit(self, request_id: str, samples: int, arrivals: Arrivals, gathered: bool) -> Call:
        with self._lock:
            loaded = self._loaded
            if loaded is None:
                raise InputError("the pipeline has no model: configure it first")
            if len(self._live) >= self._most_requests():
                raise BusyError(f"{loaded.slots} requests run and {MOST_WAITING} are waiting: try again later")
            if request_id and any(call.id == request_id for call in self._live.values()):
                raise InputError(f"request id {request_id!r} is in use: give another")
            most = min(loaded.slots, MAX_SLOTS)  # the end of their prompt is one micro-batch
            if samples > most:
                raise InputError(f"samples is {samples}: this pipeline answers at most {most} at once")
            numbers = range(self._next_number, self._next_number + samples)
            self._next_number += samples
            call = Call(loaded, numbers, request_id, arrivals, self._engine.cancel, gathered=gathered)
            self._live[numbers.start] = call
            return call

    def _end(self, call: Call) -> None:
        """Free the slots of a request that ends, in whatever way."""
        for number in call.numbers:
            self._engine.cancel(number)
        with self._lock:
            if self._live.pop(call.numbers.start, None) is None:
                return
            self._finished += call.finished
            self._failed += not call.finished
            self._tokens += call.tokens
        times = RequestTimes(call.started, call.begun, call.first_s, call.last_s)
        told = tell_request(call.carried, call.numbers.start, times, call.tokens, call.finished)
        if told:
            for number in call.numbers:
                self._engine.tell(number, told)

    def _check_progress(self, call: Call) -> None:
        if time.monotonic() - max(call.started_monotonic, self._engine.progressed_at) > NO_PROGRESS_S:
            raise DeadlineError(f"no progress for {NO_PROGRESS_S:.0f} s: a rank hangs")

    @contextmanager
    def _listening(self, name: str) -> Iterator[Listener]:
        """Know a listener while the block runs; its requests end with it."""
        listener = Listener()
        with self._lock:
            if not name or name in self._listeners:
                raise InputError("the name of the listener is empty or in use: give a random one")
            if len(self._listeners) >= MOST_LISTENERS:
                raise BusyError(f"{MOST_LISTENERS} clients are listening: try again later")
            self._listeners[name] = listener
        try:
            yield listener
        finally:
            with self._lock:
                del self._listeners[name]
            for call in listener.end():
                self._end(call)

    def _listener(self, name: str) -> Listener:
        with self._lock:
            if (listener := self._listeners.get(name)) is None:
                raise InputError("there is no such listener: call Listen first")
            return listener

    def _parts(self, listener: Listener) -> list[pb.Part]:
        """Wait a moment for the calls of a listener, and return what has come for them or become of them."""
        arrived = _taken(listener.arrivals, min((call.deadline for call in listener.calls()), default=float("inf")))
        quiet, now = not arrived, time.perf_counter()
        arrived += [(call, []) for call in listener.calls() if quiet or now > call.deadline]
        parts: list[pb.Part] = []
        for call, batch in arrived:
            if (number := listener.number_of(call)) is None:  # it has ended
                continue
            try:
                if quiet:
                    self._check_progress(call)
                parts.extend(pb.Part(call=number, reply=reply) for reply in call.replies(batch))
                if call.open:
                    continue
            except Exception as caught:  # one request's error ends no other
                if isinstance(caught, QubicLabError):
                    error = caught
                else:
                    logger.exception("a request failed")
                    error = QubicLabError(f"a request failed ({caught!r})")
                failure = pb.Failure(status=status_of(error).value[0], text=str(error))
                parts.append(pb.Part(call=number, failure=failure))
            listener.forget(call)
            self._end(call)
        return parts

    def _description(self, replies: Replies) -> pb.Description:
        settings = self._loaded.settings if self._loaded else None
        return pb.Description(settings=settings, ranks=[pb.RankDescription(**reply) for reply in replies])

    def _most_requests(self) -> int:
        return min(MOST_REQUESTS, (self._loaded.slots if self._loaded else 0) + MOST_WAITING)

    def _set_health(self, *, serving: bool) -> None:
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in ("", SERVICE):
            self.health.set(service, status)


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


def _taken(arrivals: Arrivals, until: float) -> list[Arrival]:
    """Return all that has come; if nothing has, wait POLL_S at most and not beyond a time of `time.perf_counter`."""
    taken: list[Arrival] = []
    try:
        taken.append(arrivals.get(timeout=max(0.0, min(POLL_S, until - time.perf_counter()))))
        while True:
            taken.append(arrivals.get_nowait())
    except queue.Empty:
        return taken


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


def _check_model(asked: str, loaded: Loaded) -> None:
    if asked not in ("", loaded.settings.model, loaded.settings.model_folder):
        raise InputError(f"model {asked!r} is not loaded: this pipeline runs {loaded.settings.model!r}")


def _check_room(prompt_tokens: int, samples: int, limits: Limits) -> None:
    if limits.pages and (needed := limits.pages_of(prompt_tokens, samples)) > limits.pages:
        raise ContextError(
            f"{samples} samples of a prompt of {prompt_tokens} tokens need room for the keys and values of "
            f"{needed * PAGE}, and this pipeline has room for {limits.pages * PAGE}: give fewer samples, or start it "
            "with a larger kv_tokens"
        )


def _check_prompt(prompt: tuple[int, ...], request: Request, loaded: Loaded) -> None:
    config, most = loaded.config, loaded.limits.max_positions
    sampling, top = request.sampling, request.prompt_logprobs
    if not prompt:
        raise InputError("the prompt has no tokens: give at least one")
    if len(prompt) + bool(sampling.max_new_tokens) > most:
        if most < config.max_positions:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens, and this pipeline has room for the keys and values of {most}: "
                "give a shorter one, or start it with a larger kv_tokens"
            )
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


def _check_forced(forced: tuple[int, ...], prompt_tokens: int, loaded: Loaded) -> None:
    if (largest := max(forced, default=0)) >= loaded.config.vocab:
        raise InputError(
            f"forced token id {largest} is not in the vocabulary of {loaded.config.vocab}: replay with the same model"
        )
    if prompt_tokens + len(forced) > loaded.limits.max_positions:
        raise InputError(
            f"the prompt has {prompt_tokens} tokens and {len(forced)} are forced, at most "
            f"{loaded.limits.max_positions} fit: replay with the same model, and as much room for keys and values"
        )
