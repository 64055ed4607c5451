"""The project's errors: what a user can mend, and what went wrong while running."""

import difflib
from collections.abc import Iterable


class QubicLabError(Exception):
    """Base of every error that is meant for the user: one line that says what, the value and the remedy."""

    exit_status = 1


class InputError(QubicLabError, ValueError):
    """Something the user gave cannot be used; nothing was written and nothing is left running."""

    exit_status = 2


class NotFoundError(InputError):
    """Nothing is known by the name that was given, or no longer."""


class RefusedError(QubicLabError):
    """Whoever asks may not do this, or did not say who they are."""


class ModelError(InputError):
    """A model's files are missing, damaged, contradictory or of a kind this project does not know."""


class NonFiniteError(QubicLabError):
    """A stage produced infinities or NaN; the message names the stage."""


class RankError(QubicLabError):
    """A rank of a pipeline was lost or failed; the message names the rank and the log."""


class BusyError(QubicLabError):
    """All slots and all places in the queue are taken; the request was not begun and may be sent again later.

    `retry_after_s`: how much later, where that is known.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FencedError(QubicLabError):
    """A write came from a lease that is no longer held; nothing was changed."""


class DeadlineError(QubicLabError):
    """A request was not done by its own deadline, or made no progress for too long."""


class RequestCancelled(QubicLabError):
    """Somebody cancelled the request before its end."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a ready-to-append hint: the closest known name, or else the known names themselves."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if close:
        match = next(n for n in names if n.lower() == close[0])
        return f"did you mean {match!r}?"
    return f"known: {', '.join(names)}"


def check_choice(what: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Raises:
        InputError: with the closest known name.
    """
    names = list(known)
    if value not in names:
        raise InputError(f"unknown {what} {value!r}: {did_you_mean(value, names)}")
    return value


def check_at_least(what: str, value: int, least: int) -> int:
    """Return `value` if it is `least` or more.

    Raises:
        InputError: with the value and the limit.
    """
    if value < least:
        raise InputError(f"{what} is {value}: it must be at least {least}")
    return value


def check_range(what: str, value: int, least: int, most: int) -> int:
    """Return `value` if it is neither below `least` nor above `most`.

    Raises:
        InputError: with the value and the limit.
    """
    if value > most:
        raise InputError(f"{what} is {value}: it must be at most {most}")
    return check_at_least(what, value, least)
