"""What a page shows of each of a week's questions: which studies and criteria answer it, its pictures and its table.

Pictures and tables are named `study/name`. Where none of the named ones was recorded, the first ones that were stand
in their place.
"""

from dataclasses import dataclass

from qubic_lab.studies.finding import QUESTIONS


@dataclass(frozen=True)
class Question:
    """A question of a week; `name` is its anchor, `label` what it is called where there is little room.

    `criteria` are the ids of acceptance rows; 11.8 stands for 11.8.1 as well. The run that decides the first of them
    has the answer.
    """

    name: str
    label: str
    asks: str
    studies: tuple[str, ...]
    criteria: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    table: str = ""
    columns: tuple[str, ...] = ()
    """Of the table; empty: all."""
    met: str = ""
    """What to decide if the criteria are met."""
    missed: str = ""
    limits: str = ""
    """What the answer does not show, in one line."""

    def is_judged_by(self, row: str) -> bool:
        """Whether an acceptance row decides it."""
        return any(row == id or row.startswith(f"{id}.") for id in self.criteria)


ASKED = (
    Question(
        "speed",
        "Speed",
        QUESTIONS["speed"],
        ("split_strategies", "concurrency", "engine_speed", "engine_gains"),
        ("11.2", "11.7", "11.8"),
        ("split_strategies/throughput", "split_strategies/prediction_errors", "engine_speed/speed_ratios"),
        "split_strategies/cells",
        ("strategy", "ranks", "layers", "batch", "quantity", "predicted", "measured", "error_pct"),
        "Choose the way that is fastest here, and trust the predictions for other devices.",
        "Measure before you rent: a speed or a prediction misses its target.",
        "These are speeds of one machine; for other devices there are only predictions.",
    ),
    Question(
        "sameness",
        "Same model",
        QUESTIONS["sameness"],
        ("accuracy_comparison",),
        ("11.6",),
        ("accuracy_comparison/accuracies", "accuracy_comparison/logit_differences"),
        "accuracy_comparison/accuracy",
        ("dtype", "way", "right", "of", "share", "95 % interval", "cut"),
        "Split the model freely: its answers stay the same.",
        "Do not use the split until its difference is explained.",
        "Equal answers can be equally wrong; no GPU and no network between hosts was tested.",
    ),
    Question(
        "loss",
        "Cluster",
        QUESTIONS["loss"],
        ("cluster", "cluster_faults"),
        ("10.5", "10.6", "10.7", "10.4"),
        ("cluster/failure", "cluster/latencies", "cluster_faults/recoveries"),
        "cluster/latencies",
        met="Rely on the cluster while nodes fail.",
        missed="Do not rely on the cluster yet: it loses, repeats or delays requests more than its targets allow.",
        limits="All processes share one machine, and nodes wait instead of computing: no network fails or slows.",
    ),
    Question(
        "voting",
        "Votes",
        QUESTIONS["voting"],
        ("consensus_evaluation",),
        ("12.9", "12.7"),
        ("consensus_evaluation/tokens_curve", "consensus_evaluation/reliability"),
        "consensus_evaluation/gains",
        ("questions", "n", "vote", "against", "difference (points)", "95 % interval (points)", "verdict"),
        "Vote where answers are worth the tokens.",
        "Do not pay for votes of this model: another use of the tokens is as good or better.",
        "One small model answered short questions; a larger model can gain more or less.",
    ),
    Question(
        "prediction",
        "Markets",
        QUESTIONS["prediction"],
        ("oracle_backtest", "oracle_overview"),
        ("13.7",),
        ("oracle_backtest/equity_1", "oracle_backtest/forecast_errors", "oracle_overview/forecasts"),
        "oracle_backtest/verdicts",
        ("family", "signal", "sharpe", "low", "high", "spa_p", "detectable sharpe", "evidence"),
        "Test the signals with evidence on new data.",
        "Do not trade on these signals.",
        "This tests one coin over one period; without collected texts, sentiment is simulated.",
    ),
    Question(
        "warning",
        "Warnings",
        QUESTIONS["warning"],
        ("risk_warnings",),
        ("14",),
        ("risk_warnings/timeline_1", "risk_warnings/scores"),
        "risk_warnings/scores",
        ("bars of", "warnings", "raised", "right", "precision", "by chance", "recall", "lead_h"),
        "Act on the warnings.",
        "Do not act on the warnings alone: a naive rule is as good.",
        "This tests one coin with few falls: rules that found these falls can miss others.",
    ),
)
"""The questions in their order; the first picture of the first one opens the page."""
