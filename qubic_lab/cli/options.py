"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="Alias (smollm2, deepseek), hub id, folder of safetensors, split folder or .gguf file.")
]
Ranks = Annotated[
    int | None, typer.Option(help="Ranks to split the layers over.", show_default="1, or as the folder was split")
]
STRATEGIES = "A: cut in two; B: equal layer counts; C: equal bytes read per step."
Strategy = Annotated[str | None, typer.Option(help=STRATEGIES, show_default="C")]
Cut = Annotated[int | None, typer.Option(help="Strategy A: layers before the cut.", show_default="half")]
Layers = Annotated[
    str | None,
    typer.Option(help="Layers of each rank, such as 11,11,6, instead of ranks, strategy and cut.", show_default=False),
]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Threads = Annotated[int | None, typer.Option(help="Compute threads of each rank.", show_default="cores / ranks")]
Slots = Annotated[int, typer.Option(help="Requests that decode together in a lane.")]
Balancer = Annotated[str, typer.Option(help="Strategy by which a node is chosen.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Seed = Annotated[int, typer.Option(help="Seed of the random numbers.")]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file with settings.", show_default="the defaults")
]
Coin = Annotated[str, typer.Option(help="Id or symbol of the coin, such as bitcoin or BTC.")]
