"""`qubic-lab oracle ledger`: what was claimed and what came, the check of the ledger's chain, and its update."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, print_table, require
from qubic_lab.errors import InputError, check_choice

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from qubic_lab.oracle.config import OracleConfig
    from qubic_lab.oracle.serving.claim_update import ClaimUpdate

ACTIONS = ("show", "verify", "update")
PACKAGES = ("arch", "scipy", "talib")
EVERY_S = 300.0
"""How often a collector updates the claims."""


def ledger(
    action: Annotated[str, Argument(help="show, verify or update.")] = "show",
    head: Annotated[str, Option(help="With verify: an earlier head that must be there.", show_default=False)] = "",
    config: options.ConfigFile = None,
    json: options.Json = False,
) -> None:
    """Show what was said of prices and what came of it.

    `verify` checks all entries and names the first broken one. `update` first scores what is due, and enters what the
    oracle says now.
    """
    require(*PACKAGES, extra="oracle")
    from qubic_lab.database import open_database
    from qubic_lab.oracle.backtest.ledger import verify
    from qubic_lab.oracle.config import read_config
    from qubic_lab.oracle.inference.track_record import HEADER, track_record
    from qubic_lab.oracle.model.timestamps import now_us
    from qubic_lab.oracle.store.chain import ledger_database

    check_choice("action", action, ACTIONS)
    if head and action != "verify":
        raise InputError(f"--head is {head!r:.80}, and the action is {action}: give it with verify")
    with ledger_database() as engine:
        if action == "verify":
            last = verify(engine, head)
            if json:
                print_json({"whole": True, **asdict(last)})
            else:
                typer.echo(f"{last.entries} entries, each as it was written; the head is {last.hash}")
            return
        if action == "update":
            note(update_text(update(open_database(), read_config(config), engine)))
        record = track_record(engine, now_us())
    if json:
        print_json(asdict(record))
        return
    if record.families:
        print_table(HEADER, [each.row() for each in record.families])
        typer.echo("")
    typer.echo("\n".join(record.sentences()))


def update(market: "Engine", settings: "OracleConfig", ledger: "Engine") -> "ClaimUpdate":
    """Score what is due, and enter what the oracle says now of the coins that are collected.

    Raises:
        InputError: the settings have a clock of their own.
    """
    from qubic_lab.oracle.model.timestamps import REAL
    from qubic_lab.oracle.serving.claim_update import update_claims
    from qubic_lab.oracle.store.claims import ClaimLedger
    from qubic_lab.oracle.store.snapshot import MarketStore

    if settings.clock != REAL:
        raise InputError("the clock of the settings is a trial's: the ledger takes claims in real time only")
    return update_claims(MarketStore(market, frequencies=settings.frequencies), ClaimLedger(ledger), settings)


def update_text(done: "ClaimUpdate") -> str:
    """Return what an update of the claims did, in words."""
    waits = f", {done.waiting} wait for prices" if done.waiting else ""
    return f"ledger: {done.entered} claims entered, {done.scored} scored{waits}"


@contextmanager
def claiming(market: "Engine", settings: "OracleConfig") -> Iterator[Callable[[], "ClaimUpdate | None"]]:
    """Give a function that updates the claims, each few minutes at most; it does nothing on the clock of a trial."""
    from qubic_lab.oracle.model.timestamps import REAL
    from qubic_lab.oracle.store.chain import ledger_database

    if settings.clock != REAL or any(find_spec(name) is None for name in PACKAGES):
        yield lambda: None
        return
    next_s = 0.0
    with ledger_database() as engine:

        def renew() -> "ClaimUpdate | None":
            nonlocal next_s
            if time.monotonic() < next_s:
                return None
            next_s = time.monotonic() + EVERY_S
            return update(market, settings, engine)

        yield renew
