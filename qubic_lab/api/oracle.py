"""The routes `/api/oracle/…`; each response says how old it and each of its figures is."""

from functools import lru_cache
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import QueryParams

from qubic_lab.errors import did_you_mean
from qubic_lab.oracle.alerts.store import MOST_ALERTS, RiskAlerts
from qubic_lab.oracle.model.response import Frame, Window, to_json
from qubic_lab.oracle.model.timestamps import read_iso
from qubic_lab.oracle.risk.report import RiskReport
from qubic_lab.oracle.serving.cache import Cached
from qubic_lab.oracle.serving.market import MarketPrices
from qubic_lab.oracle.serving.overview import MOST_COINS, MOST_TEXTS, MarketOverview, Sentiment, TextHistory
from qubic_lab.oracle.serving.prices import MOST_PRICES, PriceAnalysis, PriceHistory
from qubic_lab.oracle.serving.service import Oracle, OracleStatus, Range, served

CLIENT_S = 60
"""How long a client may reuse a response: new data may come before it is no longer fresh here."""
_MOST_CHARACTERS = 64
_AS_OF = "respond with what was known at this instant (ISO 8601 with zone), at least 2 s ago; default: now"
_ASSUMED = "with as_of: count rows of archives from when they are assumed to have been known (import --known)"
Coin = Annotated[
    str, Field(max_length=_MOST_CHARACTERS, description="id, symbol or name, such as qubic-network, BTC or Solana")
]
AnyCoin = Annotated[
    str | None, Field(max_length=_MOST_CHARACTERS, description="id, symbol or name; default: the whole market")
]
_Time = Annotated[str, Field(max_length=_MOST_CHARACTERS, json_schema_extra={"format": "date-time"})]
Start = Annotated[_Time | None, Field(description="ISO 8601 with zone; default: a day or a week before the end")]
End = Annotated[_Time | None, Field(description="as start, exclusive; default: after the last one")]
_PRICE_CURSOR = "^[a-z0-9._-]{1,64}:[0-9]{1,9}:[^:]{1,16}:-?[0-9]{1,18}$"
_TEXT_CURSOR = "^-?[0-9]{1,18}_[0-9]{1,18}$"
_Cursor = Annotated[str, Field(max_length=200, description="next_cursor of the page before")]


class Asked(BaseModel):
    """The parameters of every request; others are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    as_of: Annotated[_Time | None, Field(description=_AS_OF)] = None

    @model_validator(mode="before")
    @classmethod
    def _know_all_parameters(cls, given: Any) -> Any:
        unknown = [name for name in given if name not in cls.model_fields] if isinstance(given, dict) else []
        if unknown:
            raise ValueError(f"unknown parameter {unknown[0][:100]!r}: {did_you_mean(unknown[0], cls.model_fields)}")
        return given

    @property
    def as_of_us(self) -> int | None:
        """`as_of` in microseconds."""
        return None if self.as_of is None else read_iso(self.as_of)


_Asked = TypeVar("_Asked", bound=Asked)


class AnalysisAsked(Asked):
    """The parameters of what is computed of prices and texts."""

    assumed: Annotated[bool, Field(description=_ASSUMED)] = False


class SentimentAsked(AnalysisAsked):
    """The parameters of a sentiment."""

    coin: AnyCoin = None
    window: Annotated[Window, Field(description="the time before as_of")] = "24h"


class FrameAsked(AnalysisAsked):
    """The parameters of an analysis of bars."""

    frame: Annotated[Frame, Field(description="length of the bars")] = "1h"


class RiskAsked(FrameAsked):
    """The parameters of a risk report."""

    coin: Coin


class PriceAsked(FrameAsked):
    """The parameters of a price analysis."""

    coin: AnyCoin = None


class OverviewAsked(AnalysisAsked):
    """The parameters of a market overview."""

    coins: Annotated[
        str,
        Field(
            max_length=MOST_COINS * _MOST_CHARACTERS,
            json_schema_extra={"pattern": f"^([^,]+(,[^,]+){{0,{MOST_COINS - 1}}})?$"},
            description=f"up to {MOST_COINS}, separated by commas; default: all with prices",
        ),
    ] = ""


class RangeAsked(Asked):
    """The part of a history."""

    coin: Coin
    start: Start = None
    end: End = None
    cursor: str | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_PRICES, description="the most prices of a page")] = 100

    def to_range(self) -> Range:
        """Return the range; an InputError if a text is no instant."""
        start, end = (None if each is None else read_iso(each) for each in (self.start, self.end))
        return Range(start, end, self.limit, self.cursor)


class PricesAsked(RangeAsked):
    """The parameters of a history of prices."""

    cursor: Annotated[_Cursor | None, Field(json_schema_extra={"pattern": _PRICE_CURSOR})] = None
    source: Annotated[
        str | None, Field(max_length=_MOST_CHARACTERS, description="default: the one with the newest price")
    ] = None
    interval_s: Annotated[
        int | None, Field(ge=0, le=10**9, description="seconds of a bar, or 0 for quotes; default: any")
    ] = None


class TextsAsked(RangeAsked):
    """The parameters of a history of texts."""

    cursor: Annotated[_Cursor | None, Field(json_schema_extra={"pattern": _TEXT_CURSOR})] = None
    limit: Annotated[int, Field(ge=1, le=MOST_TEXTS, description="the most texts of a page")] = 100
    duplicates: Annotated[bool, Field(description="with those that repeat others")] = False


class AlertsAsked(Asked):
    """The parameters of a list of alerts."""

    coin: Annotated[str | None, Field(max_length=_MOST_CHARACTERS, description="default: all coins")] = None
    limit: Annotated[int, Field(ge=1, le=MOST_ALERTS, description="the most alerts")] = 20


def make_routes(oracle: Oracle) -> APIRouter:
    """Return the routes of an oracle."""
    routes = APIRouter(prefix="/api/oracle", tags=["oracle"])

    @routes.get("/sentiment", response_model=Sentiment, openapi_extra=_described(SentimentAsked))
    async def sentiment(request: Request) -> Response:
        """Return the texts about a coin, or any, in numbers, models' scores of them, and an index with its factors."""
        asked = _read(SentimentAsked, request)
        return _respond(await oracle.sentiment(asked.coin, asked.window, asked.as_of_us, asked.assumed))

    @routes.get("/price_analysis", response_model=PriceAnalysis | MarketPrices, openapi_extra=_described(PriceAsked))
    async def price_analysis(request: Request) -> Response:
        """Return a coin's price, its closed bars, and what they say; without a coin, the prices of all in short."""
        asked = _read(PriceAsked, request)
        return _respond(await oracle.price_analysis(asked.coin, asked.frame, asked.as_of_us, asked.assumed))

    @routes.get("/risk", response_model=RiskReport, openapi_extra=_described(RiskAsked))
    async def risk(request: Request) -> Response:
        """Return the level of risk with its evidence, the loss of the next bar, and the record of past warnings."""
        asked = _read(RiskAsked, request)
        return _respond(await oracle.risk(asked.coin, asked.frame, asked.as_of_us, asked.assumed))

    @routes.get("/market_overview", response_model=MarketOverview, openapi_extra=_described(OverviewAsked))
    async def market_overview(request: Request) -> Response:
        """Return several coins at a glance, in plain words, with a rating by simple rules that is no advice."""
        asked = _read(OverviewAsked, request)
        coins = asked.coins.split(",") if asked.coins else []
        return _respond(await oracle.market_overview(coins, asked.as_of_us, asked.assumed))

    @routes.get("/prices", response_model=PriceHistory, openapi_extra=_described(PricesAsked))
    async def prices(request: Request) -> Response:
        """List prices of one source, the newest first, page by page; with as_of the pages never change."""
        asked = _read(PricesAsked, request)
        found = await oracle.price_history(asked.coin, asked.to_range(), asked.source, asked.interval_s, asked.as_of_us)
        headers = {"Age": "0", "Cache-Control": "private, no-cache"}
        return Response(to_json(found), media_type="application/json", headers=headers)

    @routes.get("/texts", response_model=TextHistory, openapi_extra=_described(TextsAsked))
    async def texts(request: Request) -> Response:
        """List texts about a coin, the newest first, page by page; with as_of the pages never change."""
        asked = _read(TextsAsked, request)
        return _respond(await oracle.text_history(asked.coin, asked.to_range(), asked.duplicates, asked.as_of_us))

    @routes.get("/alerts", response_model=RiskAlerts, openapi_extra=_described(AlertsAsked))
    async def alerts(request: Request) -> Response:
        """List the last risk alerts, the newest first, with their delivery; with as_of those made by then."""
        asked = _read(AlertsAsked, request)
        found = await oracle.alerts(asked.limit, asked.coin, asked.as_of_us)
        return Response(to_json(found), media_type="application/json")

    @routes.get("/status", response_model=OracleStatus)
    async def status() -> Response:
        """Return the state of the sources, quotas, the collector and the cache."""
        return Response(to_json(await oracle.status()), media_type="application/json")

    return routes


def _read(kind: type[_Asked], request: Request) -> _Asked:
    """Return the parameters of a request.

    FastAPI can read them, too, but that takes a third of the time of a cached response.
    """
    parsed: _Asked = _parsed(kind, request.scope["query_string"].decode("latin-1"))
    return parsed


@lru_cache(maxsize=1_024)
def _parsed(kind: type[_Asked], query: str) -> _Asked:
    try:
        return kind.model_validate(dict(QueryParams(query)))
    except ValidationError as error:
        found = [{**each, "loc": ("query", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(found) from None


def _described(kind: type[Asked]) -> dict[str, Any]:
    """Return the parameters for OpenAPI."""
    schema = kind.model_json_schema()
    required = schema.get("required", ())
    parameters = [
        {"name": name, "in": "query", "required": name in required, "schema": each}
        for name, each in schema["properties"].items()
    ]
    return {"parameters": parameters}


def _respond(cached: Cached) -> Response:
    """Return a response with its age; a client may reuse it while it is fresh, but no longer than a minute."""
    age_s = int(cached.age_s)
    lasts_s = int(cached.age_s + min(CLIENT_S, cached.fresh_for_s))  # HTTP counts from when it was computed
    control = "no-cache" if cached.outcome == "stale" else f"max-age={lasts_s}"
    headers = {"Age": str(age_s), "Cache-Control": f"private, {control}"}
    return Response(served(cached), media_type="application/json", headers=headers)
