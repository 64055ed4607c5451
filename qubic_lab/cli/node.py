"""`qubic-lab node`: a pipeline on this host as a node of a cluster."""

from typing import TYPE_CHECKING, Annotated

from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, show_warnings, split_list, split_numbers
from qubic_lab.core import attributes
from qubic_lab.errors import check_choice

if TYPE_CHECKING:
    from qubic_lab.pipeline.config import ResolvedConfig
    from qubic_lab.wire import cluster_pb2 as pb


def node(
    coordinator: Annotated[str, Option(metavar="HOST:PORT,…", help="Where coordinators register nodes.")],
    name: Annotated[
        str | None,
        Option(help="Unique name; with TLS NAME or LABEL@NAME of its certificate.", show_default="host, 2@host, …"),
    ] = None,
    listen: Annotated[str, Option(help="Where coordinators reach this node; port 0: a free one.")] = "127.0.0.1:0",
    health_port: Annotated[int, Option(help="Port of /health over HTTP; 0: a free one.")] = 0,
    type: Annotated[str, Option(help="whole, or expert (asked when votes disagree).")] = "whole",
    weight: Annotated[int, Option(help="Factor of its measured tokens/s in weighted round robin.")] = 1,
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    strategy: options.Strategy = None,
    cut: options.Cut = None,
    layers: options.Layers = None,
    dtype: options.Dtype = "bf16",
    slots: options.Slots = 4,
    threads: options.Threads = None,
    compression: options.Compression = None,
    speculation: options.Speculation = None,
    quantization: options.Quantization = None,
    kv_tokens: options.KvTokens = None,
    prefix_caching: options.PrefixCaching = True,
    pipeline: options.Running = None,
) -> None:
    """Run a pipeline as a node of a cluster.

    With --pipeline the ranks are others', for example on several hosts; the node connects again when they come back.
    On SIGTERM it finishes the requests that it has started, and leaves the cluster.
    """
    import asyncio

    from qubic_lab import tracing
    from qubic_lab.cluster.identity import claimed_name
    from qubic_lab.cluster.node import Node, NodeConfig
    from qubic_lab.cluster.registry import NODE_TYPES
    from qubic_lab.cluster.replica import Joined, Launched, PipelineReplica
    from qubic_lab.pipeline import Pipeline, PipelineConfig

    division = split_numbers("--layers", layers) if layers is not None else None
    coordinators = split_list("--coordinator", coordinator)
    check_choice("node type", type, NODE_TYPES)  # before a name is claimed
    shape = PipelineConfig(
        *(model, ranks, strategy, cut, dtype),
        threads=threads,
        slots=slots,
        layers=division,
        compression=compression,
        speculation=speculation,
        quantization=quantization,
        kv_tokens=kv_tokens,
        prefix_caching=prefix_caching,
    )
    show_warnings()
    tracing.start("node")

    class NodePipeline(Pipeline):
        def capabilities(self) -> "pb.Capabilities":
            return capabilities_of(self.config)

    def start() -> "Launched":
        return NodePipeline.launch(shape) if pipeline is None else Joined(pipeline, NodePipeline.connect)

    async def run(config: NodeConfig) -> None:
        await Node(config, PipelineReplica(start)).run()

    with claimed_name(coordinators, name) as (own, identity):
        config = NodeConfig(own, coordinators, listen, type, weight, identity, health_port)
        what = f"starts {model}" if pipeline is None else f"connects to the pipeline at {pipeline}"
        note(f"node {own} {what}; it registers at {coordinator}")
        asyncio.run(run(config))


def capabilities_of(config: "ResolvedConfig") -> "pb.Capabilities":
    """Return the capabilities of a node with such a pipeline, without its speed."""
    from qubic_lab.cluster.vitals import memory_bytes
    from qubic_lab.model.checkpoint import run_hash
    from qubic_lab.model.config import load_config
    from qubic_lab.model.cost import model_cost
    from qubic_lab.model.split import text_folder
    from qubic_lab.wire import cluster_pb2 as pb

    return pb.Capabilities(
        **attributes(config, "model", "layers", "dtype", "meaningless"),
        model_hash=run_hash(config.folder, config.quantization),
        devices=[_device_name(config.device, rank) for rank in range(config.ranks)],
        memory_bytes=memory_bytes(),
        slots=config.lanes * config.slots,
        parameters=model_cost(load_config(text_folder(config.folder)), config.dtype).parameters,
    )


def _device_name(device: str, rank: int) -> str:
    if device != "cuda":
        return device
    import torch

    return torch.cuda.get_device_name(rank)
