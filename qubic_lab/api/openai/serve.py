"""The server of one pipeline on this host: the OpenAI routes, `/health` and `/metrics`."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from pydantic import BaseModel, Field

from qubic_lab import __version__
from qubic_lab.api.cluster_metrics import rank_families
from qubic_lab.api.http_metrics import METRICS
from qubic_lab.api.http_server import KEY, Accesses, ServeConfig, guard, new_app, run_server
from qubic_lab.api.openai import embeddings as embedding_routes
from qubic_lab.api.openai import responses as response_routes
from qubic_lab.api.openai import tokens as token_routes
from qubic_lab.api.openai.consensus import SampleElector
from qubic_lab.api.openai.embeddings import Embeddings
from qubic_lab.api.openai.metrics import PipelineMetrics
from qubic_lab.api.openai.pipeline import PipelineAnswerer
from qubic_lab.api.openai.routes import make_routes
from qubic_lab.api.pages import Home, add_pages
from qubic_lab.api.problems import Problem
from qubic_lab.cluster.replica import Replica
from qubic_lab.pipeline.text import Tokenizer

WHAT = "A server: one pipeline answers, over the interface of OpenAI."


class Serving(BaseModel):
    """That requests are answered."""

    status: Annotated[Literal["serving"], Field(description="always the same: otherwise the status is 503")] = "serving"
    model: Annotated[str, Field(description="the model that answers")]


_EXAMPLE = Serving(model="smollm2").model_dump()
_SERVING: dict[int | str, dict[str, Any]] = {200: {"content": {"application/json": {"example": _EXAMPLE}}}}


def create_app(
    answerer: PipelineAnswerer,
    metrics: PipelineMetrics,
    accesses: Accesses | None = None,
    elector: SampleElector | None = None,
    embeddings: Embeddings | None = None,
    load_tokenizer: Callable[[], Tokenizer] | None = None,
) -> FastAPI:
    """Return the application; the answerer must be running while it serves (`PipelineAnswerer.running`).

    Without `elector` there is no consensus, without `embeddings` and `load_tokenizer` their routes are missing.
    """
    app = new_app()
    app.include_router(make_routes(answerer, elector))
    app.include_router(response_routes.make_routes(answerer, elector))
    if embeddings is not None:
        app.include_router(embedding_routes.make_routes(embeddings))
    if load_tokenizer is not None:
        app.include_router(token_routes.make_routes(load_tokenizer))
    app.include_router(_monitoring(answerer, metrics))
    add_pages(app, WHAT, partial(_look_at, answerer), KEY if accesses else None)
    guard(app, metrics, accesses)
    return app


async def _look_at(answerer: PipelineAnswerer) -> Home:
    return Home({"version": __version__}, [("pipeline", answerer.model, answerer.trouble or "available")])


def serve(
    config: ServeConfig,
    replica: Replica,
    load_tokenizer: Callable[[], Tokenizer],
    listening: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until SIGTERM or SIGINT; the replica is started first and ended last.

    Calls `listening` with the URL for clients once they can connect.

    Raises:
        InputError: the address is in use.
        QubicLabError: the replica does not start.
    """
    metrics = PipelineMetrics()
    answerer = PipelineAnswerer(replica, metrics)
    elector, embeddings = SampleElector(answerer), Embeddings()
    app = create_app(answerer, metrics, config.accesses(), elector, embeddings, load_tokenizer)
    run_server(config, app, _working(answerer, elector, embeddings), listening)


@asynccontextmanager
async def _working(answerer: PipelineAnswerer, elector: SampleElector, embeddings: Embeddings) -> AsyncIterator[None]:
    async with answerer.running():
        try:
            yield
        finally:
            elector.end()
            embeddings.end()


def _monitoring(answerer: PipelineAnswerer, metrics: PipelineMetrics) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/health", response_model=Serving, responses=_SERVING)
    async def health() -> Serving | Response:
        """Return that requests are answered; 503 while the pipeline restarts."""
        if answerer.trouble:
            return Problem(503, "Not ready", answerer.trouble)
        return Serving(model=answerer.model)

    @routes.get("/metrics", response_class=Response, responses=METRICS)
    async def tell(request: Request) -> Response:
        """Return the metrics in Prometheus's text format, or as OpenMetrics for those who accept that."""
        metrics.ranks.families = rank_families({"": await answerer.ranks()})
        content, media_type = metrics.read(request.headers.get("accept", ""))
        return Response(content, media_type=media_type)

    return routes
