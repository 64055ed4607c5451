"""A cluster as the one who answers: each sample is a task of its own, which goes on when a replica is lost."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

from qubic_lab.api.openai.answerer import ClientInfo, ModelCard, Piece, together, with_seed
from qubic_lab.api.responses import count_answer, leave_task, result_of
from qubic_lab.cluster.calls import PROMPT, scored_tokens_of, token_of
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.core import Completion, Request
from qubic_lab.errors import FullError, QubicLabError
from qubic_lab.pipeline.calls import generate_message

NO_NODE_S = 5.0
"""When a client may try again while no node is registered."""


class CoordinatorAnswerer:
    """Answers with the nodes of a running coordinator's cluster."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator

    async def models(self) -> list[ModelCard]:
        """Return the models of the nodes, first that of the most nodes."""
        cards: dict[str, ModelCard] = {}
        nodes = Counter[str]()
        for view in self._coordinator.nodes():
            can = view.record.registration.capabilities
            since_s = int(time.time() - view.record.registered_s)
            known = cards.get(can.model)
            cards[can.model] = ModelCard(can.model, can.model_hash, min(since_s, known.since_s if known else since_s))
            nodes[can.model] += 1
        if not cards:
            raise FullError("no node is registered: start one with qubic-lab node", NO_NODE_S)
        return [cards[name] for name in sorted(cards, key=lambda name: (-nodes[name], name))]

    async def answer(
        self, request: Request, samples: int, *, client: ClientInfo, model: str = "", whole: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Answer a request by any nodes that have the model."""
        cards = await self.models()
        bound = "" if len(cards) == 1 else model or cards[0].name
        works = [self._one(with_seed(request, sample), client.part(sample), bound, whole) for sample in range(samples)]
        async with aclosing(together(works)) as pieces:
            async for sample, (_, piece) in pieces:
                yield sample, piece

    async def _one(self, request: Request, client: ClientInfo, model: str, whole: bool) -> AsyncGenerator[Piece, None]:
        started_s, ended = time.perf_counter(), False
        message = generate_message(request, "", 0.0, whole=False)
        message.model = model
        asker = self._coordinator.new_asker()
        submitting = asyncio.ensure_future(
            self._coordinator.submit(
                message,
                idempotency_key=client.key or None,
                body=client.body,
                asker=asker,
                whole=whole,
                deadline_s=client.timeout_s if whole else None,  # of a stream it is the time to the next piece
            )
        )
        items: list[dict[str, Any]] = []
        try:
            task_id = await asyncio.shield(submitting)
            async with aclosing(self._coordinator.follow(task_id, whole=whole)) as followed:
                async for progress in followed:
                    items += progress.items
                    for item in () if whole else progress.items:
                        yield 0, token_of(item)
                    if progress.outcome is not None:
                        ended = True
                        completion = _completion_of(request, items, result_of(progress.outcome))
                        seconds = time.perf_counter() - started_s
                        count_answer(self._coordinator, "single", False, seconds, len(items))
                        if completion.prompt_scores and not client.key:  # many of them would fill Redis
                            with suppress(QubicLabError):
                                await self._coordinator.call(self._coordinator.queue.forget, task_id)
                        yield 0, completion
        finally:
            if not ended:
                await asyncio.shield(self._leave(submitting, asker, client))

    async def _leave(self, submitting: "asyncio.Future[str]", asker: str, client: ClientInfo) -> None:
        """Leave a task, also one that is just being submitted."""
        await asyncio.wait({submitting})
        if not submitting.cancelled() and submitting.exception() is None:
            await leave_task(self._coordinator, submitting.result(), asker, bool(client.key), client.hang_up)


def _completion_of(request: Request, items: list[dict[str, Any]], result: dict[str, Any]) -> Completion:
    return Completion(
        prompt=request.prompt,
        text=result["text"],
        token_ids=tuple(item["id"] for item in items),
        finish_reason=result["finish_reason"],
        prompt_tokens=result["prompt_tokens"],
        ttft_ms=result["ttft_ms"],
        tokens_per_s=result["tokens_per_s"],
        logprobs=tuple(item["logprob"] for item in items if "logprob" in item),
        prompt_scores=scored_tokens_of(result.get(PROMPT, "")),
        queue_ms=result.get("queue_ms", 0.0),
        cached_tokens=result.get("cached_tokens", 0),
    )
