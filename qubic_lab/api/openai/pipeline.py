"""A pipeline of this process as the one who answers; it is restarted when a rank is lost."""

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from qubic_lab.api.openai.answerer import ClientInfo, ModelCard, Piece, with_seed
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.cluster.replica import Replica, keep_running
from qubic_lab.core import Request
from qubic_lab.errors import FullError, RankError
from qubic_lab.pipeline.calls import answer_of, generate_message, token_of
from qubic_lab.pipeline.message import MAX_SLOTS
from qubic_lab.wire import cluster_pb2 as pb
from qubic_lab.wire import pipeline_pb2

RESTART_S = 5.0
"""When a client may try again while the pipeline restarts."""
SUSPECTED_S = 15.0
"""How long an answer that was lost says that the pipeline is, before its processes have ended."""

logger = logging.getLogger(__name__)


class PipelineAnswerer:
    """Answers with a replica, which is up while the block of `running` runs."""

    def __init__(self, replica: Replica, metrics: PipelineMetrics | None = None) -> None:
        self._replica = replica
        self._metrics = metrics or PipelineMetrics()
        self._capabilities = pb.Capabilities()
        self._since_s = int(time.time())
        self._trouble = "the pipeline is starting"
        self._suspected_until_s = -math.inf

    @property
    def trouble(self) -> str:
        """Why nothing is answered now; empty: all is well."""
        suspected = time.monotonic() < self._suspected_until_s
        return self._trouble or ("the pipeline was lost" if suspected else "")

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
            self._trouble = ""
            keeping = asyncio.ensure_future(self._keep())
            yield self
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.gather(keeping, return_exceptions=True)
            await self._replica.stop()

    @property
    def model(self) -> str:
        """The model's name."""
        return self._capabilities.model

    async def ranks(self) -> Sequence[pipeline_pb2.RankCounts]:
        """Return what each rank has done; nothing while the pipeline does not answer."""
        return (await self._replica.stats()).ranks

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
                async with aclosing(self._part(message, request)) as pieces:
                    async for sample, piece in pieces:
                        yield first + sample, piece

    async def _part(self, message: pipeline_pb2.GenerateRequest, request: Request) -> AsyncGenerator[Piece, None]:
        try:
            async with aclosing(self._replica.generate(message)) as replies:
                async for reply in replies:
                    if reply.WhichOneof("event") == "token":
                        self._metrics.tokens.inc()
                        yield reply.sample, token_of(reply.token)
                    else:
                        completion = answer_of(request, reply.end).completion
                        self._metrics.count(completion, whole=message.whole, shared=reply.sample > 0)
                        yield reply.sample, completion
        except RankError:
            self._suspected_until_s = time.monotonic() + SUSPECTED_S
            raise

    def _check(self) -> None:
        if self.trouble:
            raise FullError(f"{self.trouble}: try again soon", RESTART_S)

    async def _keep(self) -> None:
        async for loss in keep_running(self._replica):
            if loss is None:
                self._trouble, self._suspected_until_s = "", -math.inf
            else:
                logger.warning("%s; restarting", loss)
                self._trouble = f"the pipeline is restarting ({loss})"
