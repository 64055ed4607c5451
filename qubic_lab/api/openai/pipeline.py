"""A pipeline of this process as the one who answers; it is restarted when a rank is lost."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

from qubic_lab.api.openai.answerer import ClientInfo, ModelCard, Piece, with_seed
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.cluster.replica import Replica, keep_running
from qubic_lab.core import Request
from qubic_lab.errors import FullError
from qubic_lab.pipeline.calls import answer_of, generate_message, token_of
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.wire import cluster_pb2 as pb

RESTART_S = 5.0
"""When a client may try again while the pipeline restarts."""

logger = logging.getLogger(__name__)


class PipelineAnswerer:
    """Answers with a replica, which is up while the block of `running` runs."""

    def __init__(self, replica: Replica, metrics: PipelineMetrics | None = None) -> None:
        self._replica = replica
        self._metrics = metrics or PipelineMetrics()
        self._capabilities = pb.Capabilities()
        self._since_s = int(time.time())
        self.trouble = "the pipeline is starting"
        """Why nothing is answered now; empty: all is well."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["PipelineAnswerer"]:
        """Start the replica, restart it whenever it is lost, and end it with the block.

        Raises:
            QubicLabError: it does not start the first time.
        """
        keeping = None
        try:
            self._capabilities = await self._replica.start()
            self._metrics.slots = self._capabilities.slots
            self.trouble = ""
            keeping = asyncio.ensure_future(self._keep())
            yield self
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            await self._replica.stop()

    async def models(self) -> list[ModelCard]:
        """Return the one model."""
        self._check()
        return [ModelCard(self._capabilities.model, self._capabilities.model_hash, self._since_s)]

    async def answer(
        self, request: Request, samples: int, *, client: ClientInfo, model: str = "", whole: bool = False
    ) -> AsyncGenerator[Piece, None]:
        """Answer a request; the samples that the slots can hold share the computation of its prompt."""
        self._check()
        most = max(1, min(self._capabilities.slots, MAX_SLOTS))
        for first in range(0, samples, most):
            count = min(most, samples - first)
            message = generate_message(with_seed(request, first), "", 0.0, count, whole=whole)
            with self._metrics.answering(count):
                async with aclosing(self._replica.generate(message)) as replies:
                    async for reply in replies:
                        if reply.WhichOneof("event") == "token":
                            self._metrics.tokens.inc()
                            yield first + reply.sample, token_of(reply.token)
                        else:
                            completion = answer_of(request, reply.end).completion
                            self._metrics.count(completion, whole=whole, shared=reply.sample > 0)
                            yield first + reply.sample, completion

    def _check(self) -> None:
        if self.trouble:
            raise FullError(f"{self.trouble}: try again soon", RESTART_S)

    async def _keep(self) -> None:
        async for loss in keep_running(self._replica):
            if loss is not None:
                logger.warning("%s; restarting", loss)
            self.trouble = f"the pipeline is restarting ({loss})" if loss else ""
