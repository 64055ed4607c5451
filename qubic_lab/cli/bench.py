"""`qubic-lab bench …`: the group; its commands stand in a file for each subject."""

import typer

from qubic_lab.cli import bench_backtest, bench_cluster, bench_consensus, bench_oracle, bench_pipeline

COMMANDS = (
    (bench_backtest.backtest, "backtest --null 1000 --effect 300 --var 200"),
    (bench_cluster.balance, "balance --requests 50 --nodes 3"),
    (bench_pipeline.concurrency, "concurrency --model smollm2 --clients 1,4,10,16"),
    (bench_consensus.consensus, "consensus --accuracy 0.6 --correlation 0 --k 5"),
    (bench_cluster.dispatch, "dispatch --concurrency 50 --requests 1000"),
    (bench_pipeline.engine, "engine --model smollm2 --ranks 1,2 --batch 1,8"),
    (bench_cluster.failover, "failover --nodes 3 --kill-coordinator"),
    (bench_pipeline.gpu, "gpu --model deepseek --dtype fp16"),
    (bench_pipeline.link, "link --repeat 500"),
    (bench_pipeline.memory, "memory --model smollm2 --ranks 2"),
    (bench_oracle.oracle, "oracle --clients 50"),
    (bench_consensus.pairs, "pairs"),
    (bench_pipeline.prediction, "prediction --model smollm2 --ranks 1,2 --batch 1,4,8"),
    (bench_cluster.queue, "queue --tasks 20000 --workers 4 --kill-every 2s"),
    (bench_consensus.samples, "samples --model smollm2 --ranks 2 --samples 4"),
    (bench_cluster.scale, "scale --nodes 10,100,300,1000 --real 3,6,12"),
    (bench_pipeline.tracing, "tracing --model smollm2 --ranks 2"),
    (bench_consensus.voting, "voting --answers 16"),
)
"""Each with the arguments of an example, in the order that the help lists them."""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Measure pipelines, clusters and votes on this machine.",
        epilog="Example: qubic-lab bench memory --model smollm2 --ranks 2",
        rich_markup_mode=None,
    )
    for command, example in COMMANDS:
        group.command(epilog=f"Example: qubic-lab bench {example}")(command)
    app.add_typer(group, name="bench")
