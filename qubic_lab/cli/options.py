"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

from typer import Option

Model = Annotated[str, Option(help="smollm2, deepseek, a hub id, a folder of safetensors, a split or a .gguf file.")]
Ranks = Annotated[int | None, Option(help="Ranks to split the layers over.", show_default="1, or as it was split")]
STRATEGIES = "A: cut in two; B: equal layer counts; C: equal bytes read per step."
Strategy = Annotated[str | None, Option(help=STRATEGIES, show_default="C")]
Cut = Annotated[int | None, Option(help="Strategy A: layers before the cut.", show_default="half")]
Layers = Annotated[str | None, Option(help="Layers of each rank, such as 11,11,6, instead.", show_default=False)]
Dtype = Annotated[str, Option(help="fp32, bf16 or fp16.")]
Compression = Annotated[
    str | None, Option(help="lossless: pack what travels between ranks, for slow links.", show_default="none")
]
Speculation = Annotated[
    str | None,
    Option(
        help="lookup: draft tokens from the text so far, where that pays; answers stay the same.",
        show_default="none",
    ),
]
Quantization = Annotated[
    str | None,
    Option(help="int8 or int4: round the weights to so many bits; faster, but another model.", show_default="none"),
]
KvTokens = Annotated[
    int | None,
    Option(help="Tokens whose keys and values fit all requests together.", show_default="by free memory"),
]
PrefixCaching = Annotated[bool, Option(help="Compute no beginning of a prompt again that is known.")]
Threads = Annotated[int | None, Option(help="Compute threads of each rank.", show_default="cores / ranks")]
Running = Annotated[
    str | None,
    Option(metavar="ADDRESS", help="Serve this running pipeline instead: HOST:PORT or unix:PATH.", show_default=False),
]
Slots = Annotated[int, Option(help="Requests that decode together in a lane.")]
Balancer = Annotated[str, Option(help="Strategy by which a node is chosen.")]
Json = Annotated[bool, Option("--json", help="Print one JSON object.")]
Seed = Annotated[int, Option(help="Seed of the random numbers.")]
ConfigFile = Annotated[Path | None, Option(metavar="FILE", help="YAML file with settings.", show_default="defaults")]
Coin = Annotated[str, Option(help="Id or symbol of the coin, such as bitcoin or BTC.")]
