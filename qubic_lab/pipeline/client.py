"""The client of notebooks, scripts and the command line: a running pipeline on this or another host."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeAlias

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from qubic_lab.core import Completion, Request, SamplingParams, StreamedToken
from qubic_lab.errors import DeadlineError, InputError, QubicLabError, RankError, check_at_least, check_choice
from qubic_lab.model.checkpoint import read_ahead
from qubic_lab.pipeline.calls import (
    NO_PROGRESS_S,
    SERVICE,
    PipelineAnswer,
    Scores,
    answer_of,
    as_request,
    generate_message,
    no_model_text,
    scores_of,
    token_of,
)
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig, resolve_config
from qubic_lab.pipeline.local import LocalRanks
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire.channel import TlsFiles, error_of, open_channel
from qubic_lab.wire.services import PIPELINE_SERVICE, stub_of

_log = logging.getLogger(__name__)
_Replies: TypeAlias = "grpc._CallIterator[pb.GenerateReply]"

START_TIMEOUT_S = 120.0
"""Time limit for the start of the processes, without loading the model, which has no limit."""
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class RankDescription:
    """The memory of a rank; `peak_rss_bytes` is the peak resident memory of its process.

    `gpu_used_bytes` and `gpu_reserved_bytes` are the peaks of the tensors and of the allocator on a GPU; on a CPU they
    are 0. `page_bytes` is what keys and values of 64 tokens take; 0 if its cache has no pages.
    """

    rank: int
    pid: int
    stage: str
    weight_bytes: int
    peak_rss_bytes: int
    gpu_used_bytes: int
    gpu_reserved_bytes: int
    page_bytes: int


@dataclass(frozen=True)
class PipelineStats:
    """The load of a pipeline: running and waiting requests, capacity, and outcomes of earlier requests."""

    slots: int
    requests: int
    most_requests: int
    finished: int
    failed: int
    tokens: int
    uptime_s: float


class Stream:
    """The tokens of one answer as they come; after the last one `completion` holds the whole answer."""

    def __init__(self, pipeline: "Pipeline", request: Request, replies: "_Replies") -> None:
        self._pipeline = pipeline
        self._request = request
        self._replies = replies
        self._answer: PipelineAnswer | None = None

    def __iter__(self) -> Iterator[StreamedToken]:
        try:
            for reply in self._replies:
                if reply.WhichOneof("event") == "token":
                    yield token_of(reply.token)
                else:  # the last reply; leaving the call unread would cancel it
                    self._answer = answer_of(self._request, reply.end)
        except grpc.RpcError as error:
            raise self._pipeline._error(error) from None

    def cancel(self) -> None:
        """Cancel the answer; its slot is free at the next step, and further iteration raises RequestCancelled."""
        self._replies.cancel()

    @property
    def completion(self) -> Completion:
        """The whole answer; an InputError if the stream has not been read to its end."""
        if self._answer is None:
            raise InputError("the answer is not complete: read the stream to its end first")
        return self._answer.completion

    def answer(self) -> PipelineAnswer:
        """Read the remaining tokens and return the whole answer."""
        for _ in self:
            pass
        if self._answer is None:
            raise RankError("the pipeline ended an answer early")
        return self._answer


class Pipeline:
    """A running pipeline; use it as a context manager, or call `close`. Many threads may share one."""

    def __init__(self, channel: grpc.Channel, name: str, ranks: LocalRanks | None = None) -> None:
        self._channel = channel
        self._name = name
        self._ranks = ranks
        self._stub = stub_of(channel, PIPELINE_SERVICE)
        self._config: ResolvedConfig | None = None

    @classmethod
    def launch(cls, config: PipelineConfig | None = None, **options: Any) -> Self:
        """Start ranks on this machine, load the model and return the handle; closing it ends the ranks.

        `options` are fields of the config, such as `model="smollm2", ranks=2`.

        Raises:
            InputError: a value is wrong; nothing was started.
            RankError: the ranks did not start; the message names the log.
        """
        for name in options:
            check_choice("option", name, PipelineConfig.__dataclass_fields__)
        resolved = resolve_config(replace(config or PipelineConfig(), **options))
        ranks = LocalRanks.start(resolved.ranks, resolved.threads)
        threading.Thread(target=read_ahead, args=(resolved.folder,), daemon=True).start()  # while the ranks import
        pipeline = cls(open_channel(f"unix:{ranks.socket}"), "the pipeline", ranks)
        try:
            pipeline._wait_until_up(START_TIMEOUT_S)
            pipeline._configure(resolved)
        except BaseException:
            pipeline.close()
            raise
        _log.info("%s runs on %d ranks; their output goes to %s", resolved.folder, resolved.ranks, ranks.log)
        return pipeline

    @classmethod
    def connect(cls, address: str, tls: TlsFiles | None = None) -> Self:
        """Connect to a pipeline at `host:port` or `unix:/path` once its model is loaded; closing leaves it running.

        TLS is required beyond this host; by default the files are those of the settings.

        Raises:
            InputError: the address is malformed, or is not on this host and there is no TLS.
            RankError: nothing answers at the address.
            DeadlineError: the pipeline has no model, and none was loaded in time.
        """
        pipeline = cls(open_channel(address, tls), f"the pipeline at {address}")
        try:
            pipeline._wait_until_up(CONNECT_TIMEOUT_S)
            pipeline._wait_until_loaded(NO_PROGRESS_S)
            pipeline._describe()
        except BaseException:
            pipeline.close()
            raise
        return pipeline

    @property
    def config(self) -> ResolvedConfig:
        """The running configuration, as of the last call that returned it."""
        if self._config is None:
            raise InputError(f"{self._name} has no model: configure it first")
        return self._config

    @property
    def address(self) -> str:
        """Address of the service of the ranks that this handle launched.

        Raises:
            InputError: this handle launched no ranks.
        """
        return f"unix:{self._own_ranks.socket}"

    @property
    def ended(self) -> bool:
        """Whether the ranks that this handle launched have ended; errors as for `address`."""
        return self._own_ranks.ended

    def loss(self) -> RankError:
        """Return the error that names the rank which was lost first; errors as for `address`."""
        return self._own_ranks.loss()

    def configure(self, config: PipelineConfig) -> None:
        """Load another model, split, dtype or shape into the same ranks.

        Raises:
            BusyError: requests are running.
            InputError: a value is wrong, or the number of ranks differs.
        """
        resolved = resolve_config(config)
        if resolved.ranks != (ranks := len(self.describe())):
            raise InputError(f"this pipeline has {ranks} ranks, not {resolved.ranks}: launch another")
        self._configure(resolved)

    def describe(self) -> list[RankDescription]:
        """Return the memory of each rank."""
        ranks = self._describe().ranks
        names = [field.name for field in fields(RankDescription)]
        return [RankDescription(**{name: getattr(rank, name) for name in names}) for rank in ranks]

    def stats(self) -> PipelineStats:
        """Return the load of the pipeline."""
        reply = self._call(self._stub.Stats, pb.StatsRequest())
        return PipelineStats(**{field.name: getattr(reply, field.name) for field in fields(PipelineStats)})

    def generate(
        self, prompt: str | Request = "", *, id: str = "", deadline_s: float = 0.0, **options: Any
    ) -> Completion:
        """Answer one prompt; tokens come all at once, which leaves more of a CPU to the model than a stream does.

        Args:
            prompt: a text, or a ready Request.
            id: a name by which other clients can cancel the request.
            deadline_s: time limit of the answer in seconds; 0: no limit while there is progress.
            **options: `token_ids` or `messages` (a chat of ChatMessage) instead of a text, `raw`, `max_new_tokens`,
                `temperature`, `top_p`, `top_k`, `min_p`, `presence_penalty`, `frequency_penalty`, `logit_bias` (a dict
                by token ids), `seed`, `ignore_eos`, `stop`, `logprobs`, `top_logprobs`, `prompt_logprobs` (score the
                prompt, with this number of most likely tokens), `forced_token_ids` (known first tokens of the answer,
                which are not streamed again).

        Raises:
            InputError: an option is unknown or out of range, or the prompt does not fit.
            BusyError: too many requests are waiting.
            DeadlineError: there was no progress, or the deadline has passed.
            NonFiniteError: a stage produced infinities or NaN; the message names it.
            RankError: a rank was lost; the message names it and the log.
        """
        return self._ask(as_request(prompt, options), id, deadline_s, whole=True).answer().completion

    def stream(self, prompt: str | Request = "", *, id: str = "", deadline_s: float = 0.0, **options: Any) -> Stream:
        """Answer one prompt token by token; arguments and errors as for `generate`, raised while iterating."""
        return self._ask(as_request(prompt, options), id, deadline_s, whole=False)

    def score(self, text: str = "", *, token_ids: Sequence[int] = (), raw: bool = True) -> Scores:
        """Return the log-probability of each token of a text, or of given tokens, after the tokens before it.

        `raw=False` makes the text the user's turn of a chat.

        Raises:
            InputError, BusyError, DeadlineError, NonFiniteError, RankError: as for `generate`.
        """
        nothing = SamplingParams(max_new_tokens=0)
        return scores_of(self.generate(Request(text, tuple(token_ids), raw, nothing, prompt_logprobs=0)))

    def samples(
        self, prompt: str | Request, count: int, *, id: str = "", deadline_s: float = 0.0, **options: Any
    ) -> list[Completion]:
        """Answer one prompt `count` times, with the seeds `seed`, `seed + 1`, …; the prompt is computed once.

        Arguments and errors as for `generate`; there can be as many samples as the lanes have slots.
        """
        check_at_least("count", count, 1)
        request = as_request(prompt, options)
        message = generate_message(request, id, deadline_s, count, whole=True)
        try:
            answers = {reply.sample: answer_of(request, reply.end) for reply in self._stub.Generate(message)}
        except grpc.RpcError as error:
            raise self._error(error) from None
        return [answers[sample].completion for sample in range(count)]

    def cancel(self, id: str) -> bool:
        """Cancel a request by its id, whichever client sent it; return whether it was found."""
        return bool(self._call(self._stub.Cancel, pb.CancelRequest(id=id)).found)

    def answer(self, request: Request) -> PipelineAnswer:
        """Answer one request, with its number on this pipeline (its file of captured logits)."""
        return self._ask(request, whole=True).answer()

    def answer_all(self, requests: Sequence[Request]) -> Iterator[PipelineAnswer]:
        """Answer many requests at once, as many as the lanes have slots; yield answers in the requests' order.

        If one fails, or the caller stops early (Ctrl-C), the unfinished ones are cancelled without waiting.
        """
        streams: list[Stream] = []
        over = threading.Event()

        def answer(request: Request) -> PipelineAnswer:
            streams.append(stream := self._ask(request, whole=True))
            if over.is_set():  # too late for the loop below to see it
                stream.cancel()
            return stream.answer()

        with ThreadPoolExecutor(max(1, min(len(requests), self.config.lanes * self.config.slots))) as pool:
            try:
                yield from pool.map(answer, requests)
            finally:
                over.set()
                for stream in streams:
                    stream.cancel()

    def close(self) -> None:
        """Close the connection, and end the ranks if this handle launched them; may be called twice."""
        self._channel.close()
        if self._ranks is not None:
            self._ranks.end()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _own_ranks(self) -> LocalRanks:
        if self._ranks is None:
            raise InputError(f"{self._name} was not launched by this handle: ask where it was")
        return self._ranks

    def _ask(self, request: Request, id: str = "", deadline_s: float = 0.0, *, whole: bool) -> Stream:
        replies = self._stub.Generate(generate_message(request, id, deadline_s, whole=whole))
        _log.info("asked for at most %d tokens", request.sampling.max_new_tokens)
        return Stream(self, request, replies)

    def _configure(self, resolved: ResolvedConfig) -> None:
        reply: pb.Description = self._call(self._stub.Configure, resolved.to_message())
        self._config = replace(resolved, kv_tokens=reply.settings.kv_tokens or None)

    def _describe(self) -> pb.Description:
        reply: pb.Description = self._call(self._stub.Describe, pb.DescribeRequest())
        self._config = ResolvedConfig.from_message(reply.settings) if reply.HasField("settings") else None
        return reply

    def _call(self, method: Any, message: Any) -> Any:
        try:
            return method(message)
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: grpc.RpcError) -> QubicLabError:
        if error.code() != grpc.StatusCode.UNAVAILABLE:
            return error_of(error)
        return self._ranks.loss() if self._ranks else RankError(f"{self._name} is gone ({error.details()})")

    def _wait_until_up(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while self._ranks is not None and not self._ranks.socket.exists():  # gRPC would look for it once a second
            if self._ranks.ended or time.monotonic() > deadline:
                raise self._ranks.loss()
            time.sleep(0.02)
        ready = grpc.channel_ready_future(self._channel)
        while True:
            try:
                ready.result(timeout=0.1)
                return
            except grpc.FutureTimeoutError:
                if self._ranks is not None and (self._ranks.ended or time.monotonic() > deadline):
                    raise self._ranks.loss() from None
                if time.monotonic() > deadline:
                    raise RankError(
                        f"{self._name} does not answer: check address, process and TLS files of both sides"
                    ) from None

    def _wait_until_loaded(self, seconds: float) -> None:
        watched = health_pb2.HealthCheckRequest(service=SERVICE)
        health: Any = health_pb2_grpc.HealthStub(self._channel)
        states = health.Watch(watched, timeout=seconds)
        try:
            while next(states).status != health_pb2.HealthCheckResponse.SERVING:
                pass
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
                raise DeadlineError(no_model_text(self._name, seconds)) from None
            raise self._error(error) from None
        finally:
            states.cancel()
