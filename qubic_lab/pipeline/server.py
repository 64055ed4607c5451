"""The gRPC service of rank 0: requests come in as text or token ids, tokens stream out."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import TypeVar

import grpc

from qubic_lab.core import Request, SamplingParams
from qubic_lab.errors import InputError, NonFiniteError, QubicLabError
from qubic_lab.model.config import ModelConfig, load_config
from qubic_lab.model.layout import stage_ranges
from qubic_lab.model.split import rank_folder, read_split
from qubic_lab.pipeline.engine import PREFILL_CHUNK, Engine, Replies
from qubic_lab.pipeline.member import StageSettings
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.pipeline.schedule import Event, Limits
from qubic_lab.pipeline.text import Tokenizer, cut_at_stop
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire import pipeline_pb2_grpc
from qubic_lab.wire.channel import SERVER_OPTIONS, status_of

MOST_CLIENTS = 128
"""Requests that are served at once; each holds a thread of rank 0 while its tokens stream."""

Reply = TypeVar("Reply")


class PipelineService(pipeline_pb2_grpc.PipelineServicer):
    """Turns calls into the engine's commands and its events into replies."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._configuring = threading.Lock()
        self._settings: pb.Settings | None = None
        self._config: ModelConfig | None = None
        self._tokenizer: Tokenizer | None = None
        self._numbers = itertools.count()

    def Configure(self, request: pb.Settings, context: grpc.ServicerContext) -> pb.Description:
        """Load a model into the ranks."""
        with self._configuring:
            return _answer(context, lambda: self._configure(request))

    def Describe(self, request: pb.DescribeRequest, context: grpc.ServicerContext) -> pb.Description:
        """Say what is loaded and what the ranks hold."""
        return _answer(context, lambda: self._description(self._engine.report()))

    def Generate(self, request: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        """Answer one request, token by token."""
        try:
            yield from self._generate(request, context)
        except QubicLabError as error:
            context.abort(status_of(error), str(error))

    def _configure(self, message: pb.Settings) -> pb.Description:
        if message.slots_per_lane > MAX_SLOTS:
            raise InputError(f"{message.slots_per_lane} slots a lane: at most {MAX_SLOTS} fit a message")
        folder = Path(message.model_folder)
        if read_split(folder) is not None:
            folder = rank_folder(folder, 0)
        config = load_config(folder)
        reloaded = self._settings is None or self._settings.model_folder != message.model_folder
        self._settings = None
        limits = Limits(
            message.lanes, message.slots_per_lane, PREFILL_CHUNK, config.max_positions, frozenset(config.eos_token_ids)
        )
        replies = self._engine.configure(_stage_settings(message), limits)
        if reloaded:
            self._tokenizer = Tokenizer(folder)
        self._config, self._settings = config, message
        return self._description(replies)

    def _description(self, replies: Replies) -> pb.Description:
        return pb.Description(settings=self._settings, ranks=[pb.RankDescription(**reply) for reply in replies])

    def _generate(self, message: pb.GenerateRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateReply]:
        if self._config is None or self._settings is None or self._tokenizer is None:
            raise InputError("the pipeline holds no model: configure it first")
        started = time.perf_counter()
        request = _request(message)
        prompt = self._tokenizer.encode(request)
        _check_prompt(prompt, self._config)
        number = next(self._numbers)
        events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._engine.submit(number, prompt, request.sampling, events.put)
        if not context.add_callback(lambda: self._engine.cancel(number)):
            self._engine.cancel(number)  # the client has hung up already
            return
        answer = _Answer(self._tokenizer, request.sampling, frozenset(self._config.eos_token_ids), started)
        while answer.finish_reason is None:
            event = events.get()
            if event.fault_rank is not None:
                raise NonFiniteError(_fault_text(event.fault_rank, self._settings))
            answer.add(event)
            yield pb.GenerateReply(token_id=event.token)
        yield pb.GenerateReply(end=answer.end(len(prompt), number))


class _Answer:
    """The tokens of one answer so far, its text where stop strings need it, and its times."""

    def __init__(self, tokenizer: Tokenizer, sampling: SamplingParams, eos: frozenset[int], started: float) -> None:
        self._tokenizer = tokenizer
        self._sampling = sampling
        self._eos = eos
        self._times = [started]
        self._tokens: list[int] = []
        self._cut: str | None = None
        self.finish_reason: str | None = None

    def add(self, event: Event) -> None:
        assert event.token is not None
        self._tokens.append(event.token)
        self._times.append(time.perf_counter())
        self.finish_reason = event.finish
        if self._sampling.stop:
            self._cut = cut_at_stop(self._text(), self._sampling.stop)
            if self._cut is not None:
                self.finish_reason = "stop"

    def end(self, prompt_tokens: int, number: int) -> pb.End:
        started, first, last = self._times[0], self._times[1], self._times[-1]
        count = len(self._tokens)
        rate = (count - 1) / (last - first) if count > 1 else 1 / (first - started)
        return pb.End(
            text=self._text() if self._cut is None else self._cut,
            finish_reason=self.finish_reason,
            prompt_tokens=prompt_tokens,
            ttft_ms=(first - started) * 1000,
            tokens_per_s=rate,
            request=number,
        )

    def _text(self) -> str:
        ended_by_eos = self._tokens[-1] in self._eos and not self._sampling.ignore_eos
        return self._tokenizer.decode(self._tokens[:-1] if ended_by_eos else self._tokens)


def start_server(engine: Engine, address: str) -> grpc.Server:
    """Serve an engine at an address such as `unix:/path`; the engine's own loop is the caller's to run."""
    server = grpc.server(futures.ThreadPoolExecutor(MOST_CLIENTS, "client"), options=SERVER_OPTIONS)
    pipeline_pb2_grpc.add_PipelineServicer_to_server(PipelineService(engine), server)
    if not server.add_insecure_port(address):
        raise InputError(f"{address} cannot be served: another process may hold it")
    server.start()
    return server


def _answer(context: grpc.ServicerContext, call: Callable[[], Reply]) -> Reply:
    try:
        return call()
    except QubicLabError as error:
        context.abort(status_of(error), str(error))
        raise  # never reached: abort raises


def _stage_settings(message: pb.Settings) -> StageSettings:
    return StageSettings(
        model_folder=message.model_folder,
        layers=tuple(message.layers),
        dtype=message.dtype,
        device=message.device,
        threads=message.threads,
        lanes=message.lanes,
        slots_per_lane=message.slots_per_lane,
        capture_folder=message.capture_folder,
    )


def _request(message: pb.GenerateRequest) -> Request:
    s = message.sampling
    sampling = SamplingParams(s.max_new_tokens, s.temperature, s.top_p, s.top_k, s.seed, s.ignore_eos, tuple(s.stop))
    return Request(message.prompt, tuple(message.token_ids), message.raw, sampling)


def _check_prompt(prompt: tuple[int, ...], config: ModelConfig) -> None:
    if not prompt:
        raise InputError("the prompt has no tokens: give at least one")
    if len(prompt) >= config.max_positions:
        raise InputError(
            f"the prompt has {len(prompt)} tokens, the model's context is {config.max_positions}: give a shorter one"
        )
    if (largest := max(prompt)) >= config.vocab:
        raise InputError(f"token id {largest} is not in the vocabulary of {config.vocab}")


def _fault_text(rank: int, settings: pb.Settings) -> str:
    stage = stage_ranges(tuple(settings.layers))[rank]
    return (
        f"stage {rank} ({stage}) produced non-finite values in {settings.dtype}: "
        "the weights are damaged or overflow; try --dtype fp32"
    )
