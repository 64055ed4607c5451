"""Configuration of a pipeline: requested by the user, then resolved and checked before any process starts."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from qubic_lab.errors import InputError, check_at_least, check_choice, check_range
from qubic_lab.model.checkpoint import Checkpoint
from qubic_lab.model.kernels.build import failure
from qubic_lab.model.layout import DTYPE_BYTES, QUANTIZATIONS, stage_ranges
from qubic_lab.model.plan import plan_layers
from qubic_lab.model.resolve import resolve_model
from qubic_lab.model.split import rank_folder, read_split
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.provenance import usable_cores
from qubic_lab.wire import pipeline_pb2 as pb

GIVEN = "given"
"""Name of the strategy if the layers of each rank were given."""
KERNELS = ("native", "torch")
COMPRESSIONS = ("lossless",)
SPECULATIONS = ("lookup", "always")
MOST_DRAFTED = 15
"""Tokens that a step may verify of an answer in addition to the one that it chooses."""
NATIVE_DTYPES = ("fp32", "bf16")
MOST_WAITING = 192
"""Requests that may wait for a slot; further ones are refused at once."""
MOST_THREADS = 1024
"""Limit of threads per rank; more is certainly a mistake and would overload the machine."""


@dataclass(frozen=True)
class PipelineConfig:
    """Requested configuration of a pipeline; `None` means a default that depends on the model and the machine.

    `slots` is the number of requests that decode together in a lane; `lanes` defaults to the number of ranks.
    `trace` is a folder for the ranks' traces (see trace.py); an existing trace in it is replaced.
    A split folder determines `ranks`, `strategy` and `cut`. `layers` are the layers of each rank, such
    as (11, 11, 6), instead of ranks, strategy and cut. `kernels` are ours for a CPU (native) or torch's; by default
    native, where a C++ compiler is found and the dtype is not fp16. `compression` packs the hidden states between ranks
    ("lossless": no bit changes), for slow links. `speculation` drafts next tokens, those that followed the same
    tokens before, and verifies them in one step, so that no token changes: as many as pay ("lookup") or as there are
    ("always"). `quantization` rounds the weights of the layers' matrices and of the head as they are read ("int8",
    "int4"): faster where memory is what a step waits for, but another model. Keys and values of `kv_tokens` tokens fit
    all requests together; by default as many as the free memory allows. With `prefix_caching` the beginning of a prompt
    that is still known is not computed again: no bit changes, but measurements of prompts would mean nothing.
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
    trace: Path | None = None
    layers: tuple[int, ...] | None = None
    kernels: str | None = None
    compression: str | None = None
    speculation: str | None = None
    quantization: str | None = None
    kv_tokens: int | None = None
    prefix_caching: bool = False


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
    trace: Path | None
    meaningless: bool
    kernels: str
    compression: str | None = None
    speculation: str | None = None
    quantization: str | None = None
    kv_tokens: int | None = None
    prefix_caching: bool = False

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return len(self.layers)

    def to_message(self) -> pb.Settings:
        """Return the message for the ranks."""
        return pb.Settings(
            model_folder=str(self.folder),
            layers=self.layers,
            dtype=self.dtype,
            device=self.device,
            threads=self.threads,
            lanes=self.lanes,
            slots_per_lane=self.slots,
            capture_folder=str(self.capture.resolve()) if self.capture else "",
            trace_folder=str(self.trace.resolve()) if self.trace else "",
            model=self.model,
            strategy=self.strategy,
            meaningless=self.meaningless,
            kernels=self.kernels,
            compression=self.compression or "",
            speculation=self.speculation or "",
            quantization=self.quantization or "",
            kv_tokens=self.kv_tokens or 0,
            prefix_caching=self.prefix_caching,
        )

    @classmethod
    def from_message(cls, message: pb.Settings) -> "ResolvedConfig":
        """Return the configuration of a running pipeline from its message."""
        return cls(
            model=message.model,
            folder=Path(message.model_folder),
            strategy=message.strategy,
            layers=tuple(message.layers),
            dtype=message.dtype,
            device=message.device,
            threads=message.threads,
            lanes=message.lanes,
            slots=message.slots_per_lane,
            capture=Path(message.capture_folder) if message.capture_folder else None,
            trace=Path(message.trace_folder) if message.trace_folder else None,
            meaningless=message.meaningless,
            kernels=message.kernels,
            compression=message.compression or None,
            speculation=message.speculation or None,
            quantization=message.quantization or None,
            kv_tokens=message.kv_tokens or None,
            prefix_caching=message.prefix_caching,
        )


def resolve_config(config: PipelineConfig, own_rank: int | None = None) -> ResolvedConfig:
    """Fill in defaults and check everything that can be checked before a process starts.

    `own_rank` is the rank of a split whose files are on this host; by default the files of all ranks are.

    Raises:
        InputError: a value is wrong; the message names it and the remedy.
        ModelError: the model cannot be found, or its files are damaged or of an unknown kind.
    """
    check_choice("dtype", config.dtype, DTYPE_BYTES)
    if config.compression is not None:
        check_choice("compression", config.compression, COMPRESSIONS)
    if config.speculation is not None:
        check_choice("speculation", config.speculation, SPECULATIONS)
    if config.quantization is not None:
        check_choice("quantization", config.quantization, QUANTIZATIONS)
    for name in ("ranks", "lanes", "kv_tokens"):
        if (value := getattr(config, name)) is not None:
            check_at_least(name, value, 1)
    check_range("slots", config.slots, 1, MAX_SLOTS)
    if config.threads is not None:
        check_range("threads", config.threads, 1, MOST_THREADS)
    folder = resolve_model(config.model, keep_blocks=config.quantization is not None)
    split = read_split(folder)
    if split is None:
        checkpoint = Checkpoint.open(folder)
        strategy, layers = _divide(config, checkpoint.config.layers) or (
            config.strategy or "C",
            plan_layers(
                *(checkpoint.config, config.ranks or 1, config.strategy or "C", config.cut, config.quantization or "")
            ),
        )
    else:
        strategy, layers = split.strategy, split.layers_per_rank
        asked = (config.ranks or len(layers), config.strategy or strategy, config.cut or layers[0])
        if asked != (len(layers), strategy, layers[0]) or config.layers not in (None, layers):
            raise InputError(
                f"{folder} was split by strategy {strategy} into layers {'/'.join(map(str, layers))}: "
                f"leave out --strategy, --cut and --layers and give --ranks {len(layers)}"
            )
        stages = stage_ranges(layers)
        for rank in range(len(stages)) if own_rank is None else [own_rank]:
            checkpoint = Checkpoint.open(rank_folder(folder, rank), stages[rank])
    ranks = len(layers)
    device = config.device or _device(ranks)
    kernels = _kernels(config.kernels, config.dtype, device)
    for name in ("speculation", "quantization", "kv_tokens"):
        if (value := getattr(config, name)) and kernels != "native":
            raise InputError(f"{name}={value} needs native kernels (fp32 or bf16 on a CPU): leave it out")
    return ResolvedConfig(
        model=config.model,
        folder=folder.resolve(),
        strategy=strategy,
        layers=layers,
        dtype=config.dtype,
        device=device,
        threads=config.threads or max(1, usable_cores() // ranks),
        lanes=config.lanes or ranks,
        slots=config.slots,
        capture=config.capture,
        trace=config.trace,
        meaningless=checkpoint.config.meaningless,
        kernels=kernels,
        compression=config.compression,
        speculation=config.speculation,
        quantization=config.quantization,
        kv_tokens=config.kv_tokens,
        prefix_caching=config.prefix_caching,
    )


def _kernels(asked: str | None, dtype: str, device: str) -> str:
    """Return the kernels that run; the native ones are compiled here, once.

    Raises:
        InputError: native ones were asked for, but cannot run.
    """
    if asked is not None:
        check_choice("kernels", asked, KERNELS)
    if asked == "torch":
        return asked
    possible = device == "cpu" and dtype in NATIVE_DTYPES
    problem = failure() if possible else f"they are for fp32 and bf16 on a CPU, not for {dtype} on {device}"
    if not problem:
        return "native"
    if asked == "native":
        raise InputError(f"native kernels cannot run: {problem}; leave kernels out")
    if possible:
        warnings.warn(f"torch's slower kernels are used: {problem}", stacklevel=2)
    return "torch"


def _divide(config: PipelineConfig, model_layers: int) -> tuple[str, tuple[int, ...]] | None:
    """Return the strategy and the layers if the layers of each rank were given."""
    if config.layers is None:
        return None
    layers = config.layers
    asked = "/".join(map(str, layers))
    for name in ("strategy", "cut"):
        if (value := getattr(config, name)) is not None:
            raise InputError(f"layers are {asked}, and {name} is {value}: give one of the two")
    if config.ranks not in (None, len(layers)):
        raise InputError(f"layers are {asked}, for {len(layers)} ranks, but ranks is {config.ranks}: leave one out")
    if min(layers, default=0) < 1 or sum(layers) != model_layers:
        raise InputError(f"layers are {asked}: the model has {model_layers}, and each rank needs at least one")
    return GIVEN, layers


def _device(ranks: int) -> str:
    """Return `cuda` if there is a GPU for each rank, else `cpu`."""
    if not Path("/proc/driver/nvidia").exists():
        return "cpu"
    import torch

    return "cuda" if torch.cuda.device_count() >= ranks else "cpu"
