"""What each rank runs: in a fork of the launcher on one host, as a program that torchrun starts on several.

The launcher gives it a folder for the rendezvous, and its client says what to load. On several hosts torchrun does the
rendezvous, and the model is loaded at the start:
`torchrun … -m qubic_lab.pipeline.rank --listen HOST:PORT --model MODEL`.
"""

import argparse
import gc
import logging
import os
import sys
import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

gc.disable()  # collections take a sixth of the time of these imports

import torch
import torch.distributed as dist

from qubic_lab import logs, tracing
from qubic_lab.errors import InputError, QubicLabError, RankError
from qubic_lab.lifeline import end_when_parent_dies
from qubic_lab.model.folders import rank_folders, rank_name
from qubic_lab.pipeline.config import PipelineConfig, ResolvedConfig, resolve_config
from qubic_lab.pipeline.engine import Engine
from qubic_lab.pipeline.local import SOCKET, STORE, tell_failure
from qubic_lab.pipeline.member import Member, follow
from qubic_lab.pipeline.relay import relayed_store
from qubic_lab.pipeline.server import PipelineService, start_server
from qubic_lab.pipeline.transport import LoopTransport, RingTransport
from qubic_lab.provenance import usable_cores
from qubic_lab.settings import settings


def main() -> None:
    """Be a rank that torchrun starts, in a session of its own; end with torchrun."""
    gc.freeze()
    gc.enable()
    end_when_parent_dies(os.getppid())
    run()


def run(arguments: Sequence[str] | None = None) -> None:
    """Join the group as this rank, then serve (rank 0) or follow (the others) until the group ends."""
    options = _options(arguments)
    logs.configure(logs.level_of(settings().log_level or "warning"), settings().log_format)
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    tracing.start("rank")
    try:
        if ranks > 1:
            _join_group(options.run_dir, rank, ranks)
        # After joining, so that the end of a rank that refuses is noticed at once by its peers.
        config = _resolve(options, rank, ranks) if options.model else None
        member = Member(rank, ranks, LoopTransport() if ranks == 1 else RingTransport(rank, ranks))
        if rank > 0:
            follow(member)
        _serve(Engine(member), options.listen or f"unix:{options.run_dir / SOCKET}", config)
    except QubicLabError as error:
        _say(f"rank {rank}: {error}", logging.ERROR)
        if options.run_dir and isinstance(error, RankError):
            tell_failure(options.run_dir, str(error))
        sys.exit(error.exit_status)


def _options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torchrun … -m qubic_lab.pipeline.rank", description=run.__doc__)
    parser.add_argument("--run-dir", type=Path, help="folder where the ranks of one host meet; else by the rendezvous")
    parser.add_argument("--listen", metavar="HOST:PORT", help="where rank 0 serves; else a socket in --run-dir")
    parser.add_argument("--model", help="load this at start: alias, hub id or path; each host looks for itself")
    parser.add_argument("--strategy", help="A, B or C")
    parser.add_argument("--cut", type=int, help="strategy A: layers on the first rank")
    parser.add_argument("--layers", type=_layers, metavar="N,N,…", help="layers of each rank, in place of a strategy")
    parser.add_argument("--dtype", default=PipelineConfig.dtype)
    parser.add_argument("--device", help="cpu or cuda; by default what rank 0's host has for each of its ranks")
    parser.add_argument("--threads", type=int, help="of each rank; by default rank 0's host is shared by its ranks")
    parser.add_argument("--slots", type=int, default=PipelineConfig.slots, help="requests decoding together in a lane")
    parser.add_argument("--compression", help="lossless: pack what travels between ranks, for slow links")
    parser.add_argument("--speculation", help="lookup: draft next tokens from the text so far, where that pays")
    parser.add_argument("--quantization", help="int8 or int4: round the weights; faster, but another model")
    parser.add_argument("--kv-tokens", type=int, help="tokens whose keys and values fit all requests together")
    parser.add_argument("--no-prefix-caching", action="store_true", help="compute every prompt whole")
    options = parser.parse_args(arguments)
    if not (options.run_dir or options.listen):
        parser.error("give --listen HOST:PORT: rank 0 serves there")
    return options


def _layers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _join_group(run_dir: Path | None, rank: int, ranks: int) -> None:
    """Do the rendezvous through a file if there is a folder, because torch's TCP store listens on all interfaces."""
    backend = "cpu:gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend += ",cuda:nccl"
    store = relayed_store(run_dir / STORE, rank, ranks) if run_dir else None
    dist.init_process_group(
        backend,
        init_method=None if store else f"file://{run_dir / STORE}" if run_dir else "env://",
        store=store,
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=settings().group_timeout_s),
    )


def _resolve(options: argparse.Namespace, rank: int, ranks: int) -> ResolvedConfig:
    """Resolve the options, and check that this host has the files of its rank."""
    held = [folder.name for folder in rank_folders(Path(options.model).expanduser())]
    if held and rank_name(rank) not in held:
        raise InputError(
            f"this host has only {', '.join(held)} of the split in {options.model}: copy {rank_name(rank)} here, or "
            "choose the host's rank by a static rendezvous (--node-rank is ignored unless the rendezvous is static)"
        )
    ranks_here = int(os.environ["LOCAL_WORLD_SIZE"])
    config = PipelineConfig(
        model=options.model,
        ranks=ranks,
        strategy=options.strategy,
        cut=options.cut,
        layers=options.layers,
        dtype=options.dtype,
        device=options.device or ("cuda" if torch.cuda.device_count() >= ranks_here else "cpu"),
        threads=options.threads or max(1, usable_cores() // ranks_here),
        slots=options.slots,
        compression=options.compression,
        speculation=options.speculation,
        quantization=options.quantization,
        kv_tokens=options.kv_tokens,
        prefix_caching=not options.no_prefix_caching,
    )
    return resolve_config(config, own_rank=rank)


def _serve(engine: Engine, address: str, config: ResolvedConfig | None) -> None:
    server, service = start_server(engine, address)
    if config is not None:
        # The engine, which carries out the order, runs in this thread.
        threading.Thread(target=_load, args=(service, config, address), name="load", daemon=True).start()
    try:
        engine.run()
    finally:
        server.stop(grace=None)


def _load(service: PipelineService, config: ResolvedConfig, address: str) -> None:
    """Load the model into all ranks, each from its own host; end the process if that fails."""
    message = config.to_message()
    message.model_folder = config.model
    try:
        service.configure(message)
    except QubicLabError as error:
        _say(str(error), logging.ERROR)
        os._exit(error.exit_status)
    _say(f"{config.model} is served by {config.ranks} ranks at {address}")


def _say(text: str, level: int = logging.INFO) -> None:
    logs.write(level, "qubic_lab.pipeline.rank", text, settings().log_format)


if __name__ == "__main__":
    main()
