"""`qubic-lab serve`: a pipeline on this host behind an HTTP interface as OpenAI's."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, note_meaningless, show_warnings, split_numbers

if TYPE_CHECKING:
    from qubic_lab.wire import cluster_pb2 as pb

HTTP = "127.0.0.1:8000"
SLOTS = 8
EXAMPLE = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "max_tokens": 64}


def serve(
    listen: Annotated[str, Option(metavar="HOST:PORT", help="Address for HTTP clients; port 0: a free one.")] = HTTP,
    model: options.Model = "smollm2",
    ranks: options.Ranks = None,
    strategy: options.Strategy = None,
    cut: options.Cut = None,
    layers: options.Layers = None,
    dtype: options.Dtype = "bf16",
    slots: options.Slots = SLOTS,
    threads: options.Threads = None,
    compression: options.Compression = None,
    speculation: options.Speculation = None,
    quantization: options.Quantization = None,
    kv_tokens: options.KvTokens = None,
    prefix_caching: options.PrefixCaching = True,
    pipeline: options.Running = None,
    served_model_name: Annotated[
        str | None, Option(help="Name of the model for clients.", show_default="that of --model")
    ] = None,
) -> None:
    """Serve a model to any client of OpenAI's interface.

    Runs until Ctrl-C or SIGTERM, and restarts the pipeline when a rank is lost. With QUBIC_LAB_API_KEY or
    QUBIC_LAB_API_TOKENS clients must send that key, or a token. Beyond loopback it requires one of both, and TLS.
    """
    from qubic_lab import tracing
    from qubic_lab.api.http_server import KEY, ServeConfig
    from qubic_lab.api.openai.consensus import CONSENSUS
    from qubic_lab.api.openai.routes import DEFAULT
    from qubic_lab.api.openai.serve import serve as serve_pipeline
    from qubic_lab.cli.node import capabilities_of
    from qubic_lab.cluster.replica import Joined, Launched, PipelineReplica
    from qubic_lab.errors import InputError
    from qubic_lab.model.split import text_folder
    from qubic_lab.pipeline import Pipeline, PipelineConfig
    from qubic_lab.pipeline.text import Tokenizer
    from qubic_lab.settings import settings
    from qubic_lab.wire.channel import tls_from_settings

    division = split_numbers("--layers", layers) if layers is not None else None
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
    secret = settings().api_key
    key = secret.get_secret_value() if secret else ""
    config = ServeConfig(listen, settings().api_tokens, tls_from_settings(), key, guard=KEY)
    if served_model_name is not None and served_model_name.partition("/")[0] in ("", DEFAULT, CONSENSUS):
        raise InputError(
            f"--served-model-name is {served_model_name!r}, which is nothing or has a meaning: give another"
        )
    show_warnings()
    tracing.start("serve")

    folder = Path()

    class ServedPipeline(Pipeline):
        def capabilities(self) -> "pb.Capabilities":
            note_meaningless(self.config.meaningless)
            nonlocal folder
            folder = self.config.folder
            found = capabilities_of(self.config)
            found.model = served_model_name or found.model
            return found

    def start() -> "Launched":
        return ServedPipeline.launch(shape) if pipeline is None else Joined(pipeline, ServedPipeline.connect)

    what = model if pipeline is None else f"the pipeline at {pipeline}"
    known = f"{what} as {served_model_name}" if served_model_name else what

    def listening(url: str) -> None:
        note(f"serves {known} at {url}/v1; try:")
        secret_of = "$QUBIC_LAB_API_KEY" if config.key else "TOKEN" if config.tokens else ""
        access = f' -H "Authorization: Bearer {secret_of}"' if secret_of else ""
        access += ' --cacert "$QUBIC_LAB_TLS_AUTHORITY"' if config.tls else ""
        note(
            f"curl -s {url}/v1/chat/completions -H 'Content-Type: application/json'{access} -d '{json.dumps(EXAMPLE)}'"
        )

    note(f"starts {what}" if pipeline is None else f"connects to {what}")
    serve_pipeline(config, PipelineReplica(start), lambda: Tokenizer(text_folder(folder)), listening)
