"""What a notebook, the command line and the studies hold: a pipeline on this machine, and answers from it."""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import grpc

from qubic_lab.core import Completion, FinishReason, Request
from qubic_lab.errors import InputError, RankError, check_at_least, check_choice, check_range
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.layout import DTYPE_BYTES, stage_ranges
from qubic_lab.model.plan import plan_layers
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.split import rank_folder, read_split
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.provenance import usable_cores
from qubic_lab.settings import cache_folder
from qubic_lab.wire import pipeline_pb2 as pb
from qubic_lab.wire import pipeline_pb2_grpc
from qubic_lab.wire.channel import CLIENT_OPTIONS, error_of

_log = logging.getLogger(__name__)
_Call: TypeAlias = "grpc._CallIterator[pb.GenerateReply]"

START_TIMEOUT_S = 120.0
"""So long may processes take to start; loading a model comes after and has no limit."""
END_TIMEOUT_S = 10.0
MOST_THREADS = 1024
"""More threads a rank than any machine has cores are a slip, and would bring the machine down."""


@dataclass(frozen=True)
class PipelineConfig:
    """What a pipeline runs and how; `None` means the default that the resolved model and machine suggest.

    `slots` are requests that decode together in a lane; `lanes` defaults to the number of ranks, so that each has work.
    `ranks`, `strategy` and `cut` of a split folder are those it was split with.
    """

    model: str = "smollm2"
    ranks: int | None = None
    strategy: str | None = None
    cut: int | None = None
    dtype: str = "bf16"
    device: str | None = None
    threads: int | None = None
    slots: int = 1
    lanes: int | None = None
    capture: Path | None = None


@dataclass(frozen=True)
class ResolvedConfig:
    """A configuration with every default filled in and checked against the model's files."""

    model: str
    folder: Path
    strategy: str
    layers: tuple[int, ...]
    dtype: str
    device: str
    threads: int
    lanes: int
    slots: int
    capture: Path | None
    meaningless: bool

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.layers)

    def to_message(self) -> pb.Settings:
        """Return what the ranks are told."""
        return pb.Settings(
            model_folder=str(self.folder),
            layers=self.layers,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            lanes=self.lanes,
            slots_per_lane=self.slots,
            capture_folder=str(self.capture.resolve()) if self.capture else "",
        )


def resolve_config(config: PipelineConfig) -> ResolvedConfig:
    """Fill in defaults and check everything that can be checked before a process starts.

    Raises:
        InputError: a value is wrong; names it and the remedy.
        ModelError: the model cannot be had, or its files are damaged or of an unknown kind.
    """
    check_choice("dtype", config.dtype, DTYPE_BYTES)
    for name in ("ranks", "lanes"):
        if (value := getattr(config, name)) is not None:
            check_at_least(name, value, 1)
    check_range("slots", config.slots, 1, MAX_SLOTS)
    if config.threads is not None:
        check_range("threads", config.threads, 1, MOST_THREADS)
    folder = resolve_model(config.model)
    split = read_split(folder)
    if split is None:
        checkpoint = Checkpoint.open(folder)
        strategy = config.strategy or "C"
        layers = plan_layers(checkpoint.config, config.ranks or 1, strategy, config.cut)
    else:
        strategy, layers = split.strategy, split.layers_per_rank
        asked = (config.ranks or len(layers), config.strategy or strategy, config.cut or layers[0])
        if asked != (len(layers), strategy, layers[0]):
            raise InputError(
                f"{folder} was split by strategy {strategy} into layers {'/'.join(map(str, layers))}: "
                f"leave out --strategy and --cut and give --ranks {len(layers)}"
            )
        for rank, stage in enumerate(stage_ranges(layers)):
            checkpoint = Checkpoint.open(rank_folder(folder, rank), stage)
    ranks = len(layers)
    return ResolvedConfig(
        model=config.model,
        folder=folder.resolve(),
        strategy=strategy,
        layers=layers,
        dtype=config.dtype,
        device=config.device or _device(ranks),
        threads=config.threads or max(1, usable_cores() // ranks),
        lanes=config.lanes or ranks,
        slots=config.slots,
        capture=config.capture,
        meaningless=checkpoint.config.meaningless,
    )


def _device(ranks: int) -> str:
    """Return `cuda` where there is a GPU for each rank, else `cpu`."""
    if not Path("/proc/driver/nvidia").exists():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.device_count() >= ranks else "cpu"


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

    def __init__(self, processes: "_Processes", config: ResolvedConfig) -> None:
        self._processes = processes
        self._channel = grpc.insecure_channel(f"unix:{processes.socket}", options=CLIENT_OPTIONS)
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
        processes = _Processes.start(resolved.ranks, resolved.threads)
        pipeline = cls(processes, resolved)
        try:
            pipeline._wait_until_up()
            pipeline._call(pipeline._stub.Configure, resolved.to_message())
        except BaseException:
            pipeline.close()
            raise
        _log.info("%s runs on %d ranks; their output goes to %s", resolved.folder, resolved.ranks, processes.log)
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
        self._processes.end()

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
            return self._processes.loss()
        return error_of(error)

    def _wait_until_up(self) -> None:
        ready = grpc.channel_ready_future(self._channel)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                ready.result(timeout=0.1)
                return
            except grpc.FutureTimeoutError:
                if self._processes.ended or time.monotonic() > deadline:
                    raise self._processes.loss() from None


@dataclass(frozen=True)
class Answer:
    """A completion and the request's number on its pipeline."""

    number: int
    completion: Completion


class _Processes:
    """The launcher, its ranks and their folder; they end when this process does, however that happens."""

    def __init__(self, launcher: "subprocess.Popen[bytes]", run_dir: Path, log: Path) -> None:
        self._launcher = launcher
        self._run_dir = run_dir
        self.log = log
        self.socket = run_dir / "engine.sock"
        self.end = weakref.finalize(self, _end, launcher, run_dir, log)

    @classmethod
    def start(cls, ranks: int, threads: int) -> "_Processes":
        """Start the launcher in a session of its own, so that Ctrl-C reaches this process alone."""
        logs = cache_folder("logs")
        run_dir = Path(tempfile.mkdtemp(prefix="qubic-lab-"))
        log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{run_dir.name.removeprefix('qubic-lab-')}.log"
        command = [sys.executable, "-m", "qubic_lab.pipeline.launcher", f"--run-dir={run_dir}", f"--ranks={ranks}"]
        # Equal threads in two runs that are compared: torchrun's own default differs between one rank and several.
        # What torchrun leaves behind in TMPDIR goes with the run's folder.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TMPDIR": str(run_dir)}
        with log.open("wb") as output:
            launcher = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        return cls(launcher, run_dir, log)

    @property
    def ended(self) -> bool:
        """True when the launcher is gone."""
        return self._launcher.poll() is not None

    def loss(self) -> RankError:
        """Return the error that says which rank was lost; the log is kept."""
        try:
            self._launcher.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return self._lost("the pipeline does not answer")
        try:
            failure = json.loads((self._run_dir / "failure.json").read_text())
        except OSError:
            return self._lost("the pipeline's launcher ended")
        code = failure["exit_code"]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        return self._lost(f"rank {failure['rank']} (process {failure['pid']}) {how}")

    def _lost(self, what: str) -> RankError:
        kept = self.log.with_suffix(".failed.log")
        if self.log.exists():
            self.log.rename(kept)
        return RankError(f"{what}; its output is in {kept}")


def _end(launcher: "subprocess.Popen[bytes]", run_dir: Path, log: Path) -> None:
    """Close the pipe that all processes watch; the launcher removes the folder, and so do we if it was killed."""
    assert launcher.stdin is not None
    launcher.stdin.close()
    try:
        launcher.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
    shutil.rmtree(run_dir, ignore_errors=True)
    log.unlink(missing_ok=True)


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
