"""The ledger of trials: every trial with its returns. Nothing is removed, so corrections for many trials count all.

Each trial has an entry in the ledger's chain (`store/chain.py`), which also holds what was claimed of prices.
"""

import ast
import contextlib
import functools
import hashlib
import inspect
import textwrap
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from qubic_lab.errors import InputError, NotFoundError, did_you_mean
from qubic_lab.oracle.inference.alignment import AvailableText
from qubic_lab.oracle.model.bars import COLUMNS, Bars, Floats, Integers
from qubic_lab.oracle.model.timestamps import HOUR_US, iso, now_us
from qubic_lab.oracle.store.chain import (
    ChainHead,
    append,
    broken,
    canonical,
    check_chain,
    has_head,
    ledger_database,
    read_head,
)
from qubic_lab.oracle.store.transactions import Clock, Writer, upsert, writing
from qubic_lab.schema import metadata

TRIAL_INSTANTS = sa.Table(
    "trial_instants",
    metadata,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("bars", sa.Integer, nullable=False),
    sa.Column("closed_us", sa.LargeBinary, nullable=False),
)
"""Closing times of the bars that returns belong to; compressed int64. Trials on the same bars share a row."""
TRIALS = sa.Table(
    "trials",
    metadata,
    sa.Column("family", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("strategy", sa.String(128), nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("settings", sa.JSON, nullable=False),
    sa.Column("code_hash", sa.String(64), nullable=False),
    sa.Column("data_hash", sa.String(64), nullable=False),
    sa.Column("instants_hash", sa.String(64), sa.ForeignKey(TRIAL_INSTANTS.c.hash), nullable=False),
    sa.Column("start_us", sa.BigInteger, nullable=False),
    sa.Column("end_us", sa.BigInteger, nullable=False),
    sa.Column("recorded_us", sa.BigInteger, nullable=False),
    sa.Column("returns", sa.LargeBinary, nullable=False),
    sa.Index(None, "recorded_us"),
)
"""One row per trial of a family; the database refuses to change or remove rows. Returns: compressed float64."""
MOST_NAME = 128
ROUNDING = 1e-12


@dataclass(frozen=True)
class Trial:
    """What was tried, from the first bar's open to the last bar's close.

    Corrections count the trials of a family, which is a question or study. `parameters` are those of the strategy,
    `settings` those of the backtest, such as costs and lag; both are plain values for JSON.
    """

    family: str
    strategy: str
    code_hash: str
    data_hash: str
    start_us: int
    end_us: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("family", "strategy"):
            if not 0 < len(getattr(self, name)) <= MOST_NAME:
                raise InputError(f"{name} of a trial is {getattr(self, name)!r:.60}: give 1 to {MOST_NAME} characters")

    @property
    def key(self) -> str:
        """A hash of code, parameters, settings, data and period, the same whenever and wherever a trial is made."""
        parts = (self.strategy, self.code_hash, self.data_hash, self.start_us, self.end_us)
        return _hash(canonical([*parts, _plain(self.parameters), _plain(self.settings)]))


@dataclass(frozen=True)
class RecordedTrial:
    """The entry of a trial in the ledger; a trial that was there already is not new and counts once.

    `other_returns`: the same trial had other returns before, so it depends on chance or on something that its key does
    not cover; it is kept as a trial of its own. `family_trials` is the number of the family's trials.
    """

    key: str
    new: bool
    other_returns: bool
    family_trials: int


@dataclass(frozen=True, eq=False)
class FamilyTrials:
    """The keys of a family's trials in the order in which they were recorded, [trials], and their returns.

    These are [bars, trials], on the bars that all of them have, which close at `closed_us`, [bars].
    """

    keys: tuple[str, ...]
    closed_us: Integers
    returns: Floats

    def __len__(self) -> int:
        return len(self.keys)


class TrialLedger:
    """The ledger in a database that `open_database` opened; threads and processes may share it."""

    def __init__(self, engine: sa.Engine, clock: Clock = now_us) -> None:
        self.engine, self.clock = engine, clock

    def record(self, trial: Trial, closed_us: Integers, returns: Floats) -> RecordedTrial:
        """Keep a trial with its returns by bar, [bars]. The same trial with the same returns is kept once.

        Raises:
            InputError: returns that are not finite, not one for each bar, bars out of order, or bars of another length
                than those of the family.
        """
        closed, values = np.asarray(closed_us, np.int64), np.asarray(returns, np.float64)
        if closed.shape != values.shape or closed.ndim != 1 or not len(closed):
            raise InputError(f"{values.shape} returns for {closed.shape} bars: give one for each of at least one bar")
        if not np.isfinite(values).all():
            at = iso(int(closed[int((~np.isfinite(values)).argmax())]))
            raise InputError(f"return at {at} is not a number: a trial is kept whole")
        if (np.diff(closed) <= 0).any():
            raise InputError("bars of a trial are out of order: sort them by the time of their close")
        packed = _packed(values)
        with writing(self.engine, self.clock) as writer:
            key, new, other = _insert(writer, trial, closed, packed)
            if new:
                _check_bars(trial.family, [closed, *_closing_times(writer.connection, trial.family, most=1).values()])
            count = sa.select(sa.func.count()).where(TRIALS.c.family == trial.family)
            return RecordedTrial(key, new, other, writer.connection.execute(count).scalar_one())

    def trials(self, family: str, closed_us: Integers | None = None) -> FamilyTrials:
        """Return a family's trials and their returns on given bars, or on the bars that all of them have.

        On given bars, which close at `closed_us`, a trial earns nothing where it has no bar. Trials without any of
        these bars are left out, and those of a signal that was tried again on more of them: they are the same trial.

        Raises:
            NotFoundError: there is no such family.
            InputError: no bar is in all of them, or no trial has one of the given bars.
        """
        query = sa.select(TRIALS).where(TRIALS.c.family == family).order_by(TRIALS.c.recorded_us, TRIALS.c.key)
        with self.engine.connect() as connection:
            rows = connection.execute(query).all()
            closing_times = _closing_times(connection, family)
            known = connection.execute(sa.select(TRIALS.c.family).distinct()).scalars().all()
        if not rows:
            raise NotFoundError(
                f"no trials of {family!r}: {did_you_mean(family, known) if known else 'the ledger is empty'}"
            )
        common, kept = closed_us, rows
        if common is None:
            common = functools.reduce(np.intersect1d, closing_times.values())
        else:
            kept = _longest(rows, {name: int(np.isin(common, each).sum()) for name, each in closing_times.items()})
        if not len(common) or not kept:
            raise InputError(f"the {len(rows)} trials of {family!r} have no bar in common: compare those of one period")
        returns = np.zeros((len(common), len(kept)))
        for column, row in enumerate(kept):
            _, there, own = np.intersect1d(common, closing_times[row.instants_hash], return_indices=True)
            returns[there, column] = _unpacked(row.returns, np.float64)[own]
        return FamilyTrials(tuple(row.key for row in kept), common, returns)

    def state(self) -> str:
        """Return a hash of which trials there are: the same trials give the same hash, whenever they were made."""
        with self.engine.connect() as connection:
            query = sa.select(TRIALS.c.family, TRIALS.c.key).order_by(TRIALS.c.key, TRIALS.c.family)
            return _hash(canonical(sorted(list(row) for row in connection.execute(query))))


@contextlib.contextmanager
def open_ledger(database: str = "") -> Iterator[TrialLedger]:
    """Give the ledger of a database, by default the one that all runs share; see `ledger_database`.

    `sqlite://` is an empty ledger that is gone afterwards.
    """
    with ledger_database(database) as engine:
        yield TrialLedger(engine)


def verify(engine: sa.Engine, head: str = "") -> ChainHead:
    """Check every entry of the ledger, its trials with their returns, and that it holds an earlier `head`, if given.

    Raises:
        QubicLabError: at the first entry that is not as it was written; at a trial without an entry; or without the
            head.
    """
    with engine.connect() as connection:
        entered = {}
        for entry in check_chain(connection):
            if entry.kind == "trial":
                entered[entry.family, entry.content["key"]] = entry.number
                if _stored_digest(connection, entry.family, entry.content["key"]) != entry.content["digest"]:
                    raise broken(entry.number, "its trial is not as it was recorded, or is gone")
        last = read_head(connection)
        for row in connection.execute(sa.select(TRIALS.c.family, TRIALS.c.key).order_by(TRIALS.c.recorded_us)):
            if tuple(row) not in entered:
                raise broken(last.entries + 1, f"a trial of {row.family!r} has no entry: {row.key[:16]}")
        if head and not has_head(connection, head):
            raise broken(last.entries, f"no entry has the head {head!r:.80}: it is another ledger, or it was rewritten")
    return last


def _longest(rows: Sequence[sa.Row[Any]], bars: Mapping[str, int]) -> list[sa.Row[Any]]:
    """Return the rows of each signal with the most bars; `bars` counts those that count, by the hash of instants."""
    named = [canonical([row.strategy, row.code_hash, row.parameters, row.settings]) for row in rows]
    most: dict[bytes, int] = {}
    for name, row in zip(named, rows, strict=True):
        most[name] = max(most.get(name, 1), bars[row.instants_hash])
    return [row for name, row in zip(named, rows, strict=True) if bars[row.instants_hash] == most[name]]


def _insert(writer: Writer, trial: Trial, closed: Integers, packed: bytes) -> tuple[str, bool, bool]:
    """Add a trial unless it is there; return its key, whether it is new, and whether it had other returns."""
    instants, connection = _hash(closed.astype("<i8").tobytes()), writer.connection
    _add(connection, TRIAL_INSTANTS, hash=instants, bars=len(closed), closed_us=_packed(closed))
    key, other = trial.key, False
    row = {each.name: getattr(trial, each.name) for each in fields(trial)}
    row |= {"parameters": _plain(trial.parameters), "settings": _plain(trial.settings)}
    row |= {"instants_hash": instants, "recorded_us": writer.known_us, "returns": packed}
    new = _add(connection, TRIALS, key=key, **row)
    if not new:
        which = (TRIALS.c.family == trial.family) & (TRIALS.c.key == key)
        there = connection.execute(sa.select(TRIALS.c.returns, TRIALS.c.instants_hash).where(which)).one()
        if there.instants_hash != instants or not _same(there.returns, packed):
            key, other = _hash(f"{key} {_hash(zlib.decompress(packed))} {instants}".encode()), True
            new = _add(connection, TRIALS, key=key, **row)
    if new:
        append(writer, "trial", trial.family, {"key": key, "digest": _digest({**row, "key": key})})
    return key, new, other


def _digest(row: Mapping[str, Any]) -> str:
    """Return a hash of a trial's row, of its returns as they are unpacked."""
    return _hash(canonical({**row, "returns": _hash(zlib.decompress(row["returns"]))}))


def _stored_digest(connection: sa.Connection, family: str, key: str) -> str | None:
    """Return the hash of a stored trial; None if it, or its bars, are gone or do not fit their own hash."""
    query = sa.select(TRIALS, TRIAL_INSTANTS.c.closed_us).join(TRIAL_INSTANTS)
    row = connection.execute(query.where(TRIALS.c.family == family, TRIALS.c.key == key)).mappings().first()
    if row is None:
        return None
    try:
        if _hash(zlib.decompress(row["closed_us"])) != row["instants_hash"]:
            return None
        return _digest({column.name: row[column.name] for column in TRIALS.columns})
    except zlib.error:
        return None


def _closing_times(connection: sa.Connection, family: str, most: int | None = None) -> dict[str, Integers]:
    """Return the closing times of the bars of a family's trials, or of its first ones, by their hash."""
    ordered = sa.select(TRIALS.c.instants_hash).order_by(TRIALS.c.recorded_us, TRIALS.c.key)
    used = ordered.where(TRIALS.c.family == family).limit(most)
    query = sa.select(TRIAL_INSTANTS.c.hash, TRIAL_INSTANTS.c.closed_us).where(TRIAL_INSTANTS.c.hash.in_(used))
    return {name: _unpacked(blob, np.int64) for name, blob in connection.execute(query)}


def data_hash(market: Bars, texts: Sequence[AvailableText] = ()) -> str:
    """Return a hash of all data that a strategy can see."""
    digest = hashlib.sha256(canonical(market.assets))
    for values in (market.opened_us, market.closed_us, *(getattr(market, f"{name}_BA") for name in COLUMNS)):
        digest.update(np.ascontiguousarray(values).tobytes())
    for text in texts:
        scores = sorted(text.scores.items())
        digest.update(canonical([text.id, text.title, text.body, list(text.coins), scores, text.available_us]))
    return digest.hexdigest()


def code_hash(function: Callable[..., Any]) -> str:
    """Return a hash of a function's code, without comments, and of what it uses of its own module.

    That is functions and plain values that it names, and the values of its closure, but no classes.
    """
    return _hash(canonical(_described(function, set())))


def _described(thing: Any, seen: set[int]) -> Any:
    """Return what identifies a function, or a value that it uses."""
    if isinstance(thing, functools.partial):
        return ["partial", _described(thing.func, seen), _value(thing.args), _value(thing.keywords)]
    function = getattr(thing, "__func__", thing)
    if not isinstance(function, FunctionType):
        call = inspect.getattr_static(type(thing), "__call__", None)
        own = getattr(thing, "__dict__", None)
        inner = _described(call, seen) if isinstance(call, FunctionType) else None
        return [type(thing).__qualname__, inner, _value(own or thing)]
    if id(function) in seen:
        return function.__qualname__
    seen.add(id(function))
    closure = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # the cell is not set yet
            closure.append(cell.cell_contents)
    named = sorted(_names(function.__code__))
    globals_used = [function.__globals__[name] for name in named if name in function.__globals__]
    used = [_described(each, seen) for each in (*closure, *globals_used) if _is_own(each, function.__module__)]
    defaults = [_value(function.__defaults__), _value(function.__kwdefaults__)]
    return [function.__name__, _source(function), defaults, used]


def _value(thing: Any) -> Any:
    """Return a value as plain JSON, or its type where it has no such form."""
    if isinstance(thing, np.ndarray):
        return [str(thing.dtype), list(thing.shape), _hash(np.ascontiguousarray(thing).tobytes())]
    try:
        return _plain(thing)
    except InputError:
        return type(thing).__qualname__


def _is_own(thing: Any, module: str) -> bool:
    if callable(thing):
        return getattr(thing, "__module__", None) == module and not isinstance(thing, type)
    return isinstance(thing, (bool, int, float, str, tuple, list, dict, np.ndarray))


def _names(code: CodeType) -> set[str]:
    inner = (each for each in code.co_consts if isinstance(each, CodeType))
    return set(code.co_names).union(*(_names(each) for each in inner))


def _source(function: FunctionType) -> str:
    """Return a function's syntax tree, so that layout and comments do not count; without source its instructions."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return f"{function.__code__.co_code.hex()} {function.__code__.co_consts!r}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def _check_bars(family: str, instants: Sequence[Integers]) -> None:
    """Check that returns belong to bars of one length: those of hours and of days cannot be compared."""
    lengths = sorted({int(np.median(np.diff(closed))) for closed in instants if len(closed) > 1})
    if lengths and lengths[-1] > 1.5 * lengths[0]:
        raise InputError(
            f"trials of {family!r} on bars of {lengths[0] / HOUR_US:g} and {lengths[-1] / HOUR_US:g} h: "
            "their returns cannot be compared; give each length a family of its own"
        )


def _add(connection: sa.Connection, table: sa.Table, **values: Any) -> bool:
    """Add a row unless one with its key is there; return whether it was added."""
    added = upsert(connection.engine, table).values(values).on_conflict_do_nothing().returning(*table.primary_key)
    return connection.execute(added).first() is not None


def _same(first: bytes, second: bytes) -> bool:
    """Return whether returns are equal except for rounding, which differs between processors and libraries."""
    a, b = _unpacked(first, np.float64), _unpacked(second, np.float64)
    return bool(a.shape == b.shape and (np.abs(a - b) <= ROUNDING).all())


def _packed(values: NDArray[Any]) -> bytes:
    return zlib.compress(values.astype(values.dtype.newbyteorder("<")).tobytes(), 1)


def _unpacked(blob: bytes, kind: type) -> Any:
    return np.frombuffer(zlib.decompress(blob), np.dtype(kind).newbyteorder("<")).astype(kind)


def _plain(value: Any) -> Any:
    """Return a value as plain JSON; an InputError if it has no such form."""
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in sorted(value.items(), key=lambda each: str(each[0]))}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else repr(value)
    raise InputError(f"{value!r:.60} cannot be kept with a trial: give numbers, strings, lists of them, or None")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
