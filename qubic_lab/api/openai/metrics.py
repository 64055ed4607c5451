"""The metrics of a pipeline that is served: requests, tokens, and how long clients wait for them."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from qubic_lab.api.http_metrics import HttpMetrics
from qubic_lab.core import Completion
from qubic_lab.metrics import NAMESPACE, SECONDS, Latest
from qubic_lab.tracing import exemplar

TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class PipelineMetrics(HttpMetrics):
    """Counts answers as they end, and streamed tokens as they come."""

    def __init__(self) -> None:
        super().__init__()
        all_ = self.registry
        self.tokens = Counter("tokens", "Tokens of answers.", [], NAMESPACE, registry=all_)
        self.prompt_tokens = Counter("prompt_tokens", "Tokens of prompts.", [], NAMESPACE, registry=all_)
        self.answers = Counter("answers", "Whole answers by their end.", ["reason"], NAMESPACE, registry=all_)
        self.first_token = Histogram(
            "first_token_seconds", "Time to the first token.", [], NAMESPACE, registry=all_, buckets=SECONDS
        )
        self.token = Histogram(
            "token_seconds", "Time of a further token.", [], NAMESPACE, registry=all_, buckets=TOKEN_SECONDS
        )
        self.ranks = Latest(all_)
        self.slots = 0
        self._open = 0
        running = Gauge("answers_running", "Answers that are computed.", [], NAMESPACE, registry=all_)
        running.set_function(lambda: min(self._open, self.slots))
        waiting = Gauge("answers_waiting", "Answers that wait for a slot.", [], NAMESPACE, registry=all_)
        waiting.set_function(lambda: max(0, self._open - self.slots))
        slots = Gauge("slots", "Answers that can run at the same time.", [], NAMESPACE, registry=all_)
        slots.set_function(lambda: self.slots)

    @contextmanager
    def answering(self, count: int) -> Iterator[None]:
        """Count this number of answers as running or waiting while the block runs."""
        self._open += count
        try:
            yield
        finally:
            self._open -= count

    def count(self, completion: Completion, *, whole: bool, shared: bool) -> None:
        """Count an answer that has ended: its tokens, unless they were streamed, and its prompt's, unless shared."""
        if whole:
            self.tokens.inc(len(completion.token_ids))
        if not shared:
            self.prompt_tokens.inc(completion.prompt_tokens)
        self.answers.labels(completion.finish_reason).inc()
        if completion.token_ids:
            self.first_token.observe(completion.ttft_ms / 1_000, exemplar())
        if completion.tokens_per_s:
            self.token.observe(1 / completion.tokens_per_s)
