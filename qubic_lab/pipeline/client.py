"""What a notebook, the command line and the studies hold: a pipeline on this machine, and answers from it."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, TypeAlias

import grpc

from qubic_lab.core import Completion, FinishReason, Request
from qubic_lab.errors import InputError, RankError, check_choice
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig, resolve_config
from qubic_lab.pipeline.local import LocalRanks
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire import pipeline_pb2_grpc
from qubic_lab.wire.channel import CLIENT_OPTIONS, error_of

_log = logging.getLogger(__name__)
_Call: TypeAlias = "grpc._CallIterator[pb.GenerateReply]"

START_TIMEOUT_S = 120.0
"""So long may processes take to start; loading a model comes after and has no limit."""


@dataclass(frozen=True)
class RankDescription:
    """What a rank holds; `peak_rss_bytes` is its process's largest resident memory so far."""

    rank: int
    pid: int
    stage: str
    weight_bytes: int
    peak_rss_bytes: int


class Pipeline:
    """A running pipeline on this machine; use it as a context manager, or call `close`."""

    def __init__(self, ranks: LocalRanks, config: ResolvedConfig) -> None:
        self._ranks = ranks
        self._channel = grpc.insecure_channel(f"unix:{ranks.socket}", options=CLIENT_OPTIONS)
        self._stub = pipeline_pb2_grpc.PipelineStub(self._channel)
        self.config = config

    @classmethod
    def launch(cls, config: PipelineConfig | None = None, **options: Any) -> "Pipeline":
        """Start the ranks, load the model and return the handle.

        Args:
            config: what to run.
            **options: fields of the config, such as `model="smollm2", ranks=2`.

        Raises:
            InputError: a value is wrong, before anything starts.
            RankError: the ranks did not come up; names the log.
        """
        resolved = resolve_config(replace(config or PipelineConfig(), **_known_options(options)))
        ranks = LocalRanks.start(resolved.ranks, resolved.threads)
        pipeline = cls(ranks, resolved)
        try:
            pipeline._wait_until_up()
            pipeline._call(pipeline._stub.Configure, resolved.to_message())
        except BaseException:
            pipeline.close()
            raise
        _log.info("%s runs on %d ranks; their output goes to %s", resolved.folder, resolved.ranks, ranks.log)
        return pipeline

    def configure(self, config: PipelineConfig) -> None:
        """Let the same processes run another model, split, dtype or shape; the number of ranks stays.

        Raises:
            InputError: a value is wrong, or it asks for another number of ranks.
        """
        resolved = resolve_config(config)
        if resolved.ranks != self.config.ranks:
            raise InputError(f"this pipeline has {self.config.ranks} ranks, not {resolved.ranks}: launch another")
        self._call(self._stub.Configure, resolved.to_message())
        self.config = resolved

    def describe(self) -> list[RankDescription]:
        """Return what each rank holds now."""
        reply = self._call(self._stub.Describe, pb.DescribeRequest())
        return [RankDescription(r.rank, r.pid, r.stage, r.weight_bytes, r.peak_rss_bytes) for r in reply.ranks]

    def generate(self, request: Request) -> Completion:
        """Answer one request.

        Raises:
            InputError: the prompt does not fit.
            NonFiniteError: the numbers overflowed; names the stage.
            RankError: a rank was lost; names it and the log.
        """
        return self.answer(request).completion

    def answer(self, request: Request) -> "Answer":
        """Answer one request, with its number on this pipeline (its file of captured logits)."""
        return self._collect(request, self._start(request))

    def answer_all(self, requests: Sequence[Request]) -> "Iterator[Answer]":
        """Answer many requests at once, as many as the lanes have slots; yield answers in the requests' order.

        When one fails, or the caller stops early (Ctrl-C), those under way are cancelled and not waited for.
        """
        calls: list[_Call] = []
        over = threading.Event()

        def answer(request: Request) -> Answer:
            calls.append(call := self._start(request))
            if over.is_set():  # too late for the loop below to see it
                call.cancel()
            return self._collect(request, call)

        with ThreadPoolExecutor(max(1, min(len(requests), self.config.lanes * self.config.slots))) as pool:
            try:
                yield from pool.map(answer, requests)
            finally:
                over.set()
                for call in calls:
                    call.cancel()

    def close(self) -> None:
        """End the ranks; nothing of them stays behind. Closing twice does no harm."""
        self._channel.close()
        self._ranks.end()

    def __enter__(self) -> "Pipeline":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self, request: Request) -> "_Call":
        s = request.sampling
        message = pb.GenerateRequest(
            prompt=request.prompt,
            token_ids=request.token_ids,
            raw=request.raw,
            sampling=pb.Sampling(
                max_new_tokens=s.max_new_tokens,
                temperature=s.temperature,
                top_p=s.top_p,
                top_k=s.top_k,
                seed=s.seed,
                ignore_eos=s.ignore_eos,
                stop=s.stop,
            ),
        )
        call: _Call = self._stub.Generate(message)
        _log.info("asked for at most %d tokens", s.max_new_tokens)
        return call

    def _collect(self, request: Request, call: "_Call") -> "Answer":
        token_ids: list[int] = []
        try:
            for reply in call:
                if reply.WhichOneof("event") == "end":
                    return _answer(request, token_ids, reply.end)
                token_ids.append(reply.token_id)
        except grpc.RpcError as error:
            raise self._error(error) from None
        raise RankError("the pipeline ended an answer in its middle")

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[object, pb.Description]", message: object) -> pb.Description:
        try:
            return method(message)
        except grpc.RpcError as error:
            raise self._error(error) from None

    def _error(self, error: grpc.RpcError) -> Exception:
        if error.code() == grpc.StatusCode.UNAVAILABLE:
            return self._ranks.loss()
        return error_of(error)

    def _wait_until_up(self) -> None:
        ready = grpc.channel_ready_future(self._channel)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                ready.result(timeout=0.1)
                return
            except grpc.FutureTimeoutError:
                if self._ranks.ended or time.monotonic() > deadline:
                    raise self._ranks.loss() from None


@dataclass(frozen=True)
class Answer:
    """A completion and the request's number on its pipeline."""

    number: int
    completion: Completion


def _known_options(options: dict[str, Any]) -> dict[str, Any]:
    for name in options:
        check_choice("option", name, PipelineConfig.__dataclass_fields__)
    return options


def _answer(request: Request, token_ids: list[int], end: pb.End) -> Answer:
    finish: FinishReason = "stop" if end.finish_reason == "stop" else "length"
    completion = Completion(
        prompt=request.prompt,
        text=end.text,
        token_ids=tuple(token_ids),
        finish_reason=finish,
        prompt_tokens=end.prompt_tokens,
        ttft_ms=end.ttft_ms,
        tokens_per_s=end.tokens_per_s,
    )
    return Answer(end.request, completion)
