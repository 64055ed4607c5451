"""Options that several commands take, spelled once."""

from typing import Annotated

import typer

Model = Annotated[
    str, typer.Option(help="Alias (smollm2, deepseek), hub id, folder of safetensors, split folder or .gguf file.")
]
Ranks = Annotated[
    int | None, typer.Option(help="Ranks to split the layers over.", show_default="1, or as it was split")
]
Strategy = Annotated[
    str | None,
    typer.Option(help="A: cut in two; B: equal layer counts; C: equal bytes read a step.", show_default="C"),
]
Cut = Annotated[int | None, typer.Option(help="Strategy A: layers before the cut.", show_default="half")]
Layers = Annotated[
    str | None,
    typer.Option(help="Layers of each rank, such as 11,11,6, in place of ranks, strategy and cut.", show_default=False),
]
Dtype = Annotated[str, typer.Option(help="fp32, bf16 or fp16.")]
Threads = Annotated[int | None, typer.Option(help="Compute threads of each rank.", show_default="cores / ranks")]
Balancer = Annotated[str, typer.Option(help="Strategy by which a node is chosen.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
