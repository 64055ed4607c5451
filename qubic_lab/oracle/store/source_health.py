"""How sources do: from the log of the latest requests to each."""

from collections.abc import Sequence

from sqlalchemy import Engine, func, select

from qubic_lab.oracle.model.timestamps import SECOND_US, iso
from qubic_lab.oracle.serving.responses import SourceHealth
from qubic_lab.oracle.store.fetch_log import FetchLog, StoredFetch
from qubic_lab.oracle.store.tables import FETCHES

LATEST = 20
"""So many requests to a source are looked at."""
ERROR_CHARACTERS = 300


def read_source_health(engine: Engine, now_us: int) -> list[SourceHealth]:
    """Return how the latest requests to each source went, in order of their names."""
    log = FetchLog(engine)
    return [source_health(log.recent(source, LATEST), now_us) for source in _sources(engine)]


def source_health(fetches: Sequence[StoredFetch], now_us: int) -> SourceHealth:
    """Return how requests to one source went, of which there is one at least; the newest comes first."""
    last, failed = fetches[0], sum(each.outcome == "failed" for each in fetches)
    success = next((each for each in fetches if each.outcome != "failed"), None)
    ended = None if success is None else success.started_us + int(success.seconds * SECOND_US)
    failing = last.outcome == "failed"
    return SourceHealth(
        source=last.source,
        state="failing" if failing else "ok",
        requests=len(fetches),
        failed=failed,
        last_success=None if ended is None else iso(ended),
        last_success_age_s=None if ended is None else max(0.0, (now_us - ended) / SECOND_US),
        last_error=(last.error or "it does not say why")[:ERROR_CHARACTERS] if failing else None,
    )


def _sources(engine: Engine) -> list[str]:
    """Return the sources that were ever asked, by one look at the index for each: the log may be long."""
    found: list[str] = []
    query = select(func.min(FETCHES.c.source))
    with engine.connect() as connection:
        source = connection.execute(query).scalar()
        while source is not None:
            found.append(source)
            source = connection.execute(query.where(FETCHES.c.source > source)).scalar()
    return found
