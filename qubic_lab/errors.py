"""The project's errors."""

import difflib
from collections.abc import Iterable


class QubicLabError(Exception):
    """Base of all errors for users: one line with the problem, the value and the remedy."""

    exit_status = 1


class InputError(QubicLabError, ValueError):
    """An input of the user is invalid; nothing was written and nothing is left running."""

    exit_status = 2


class ContextError(InputError):
    """A prompt does not fit the model's context; `code` is OpenAI's name of that."""

    code = "context_length_exceeded"


class NotFoundError(InputError):
    """There is nothing by this name, or no longer."""


class ConflictError(InputError):
    """An input contradicts an earlier one, or another part of the request."""


class RefusedError(QubicLabError):
    """The caller has no permission, or is not authenticated."""


class ModelError(InputError):
    """A model's files are missing, damaged, contradictory or not supported."""


class NonFiniteError(QubicLabError):
    """A stage produced infinities or NaN; the message names the stage."""


class UnreachableError(QubicLabError):
    """No coordinator answers at an address."""


class RankError(QubicLabError):
    """A rank of a pipeline was lost or failed; the message names the rank and the log."""


class BusyError(QubicLabError):
    """All slots and the queue are full; the request was not started and may be sent again.

    `retry_after_s` says when, if known.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FullError(BusyError):
    """There is no room for another request."""


class DatabaseGoneError(BusyError):
    """The SQL database does not answer."""


class FencedError(QubicLabError):
    """A write came from an expired lease; nothing was changed."""


class DeadlineError(QubicLabError):
    """A request missed its deadline, or made no progress for too long."""


class RequestCancelled(QubicLabError):
    """The request was cancelled."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for an error message: the closest known name, or else all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.6)
    if close:
        match = next(n for n in names if n.lower() == close[0])
        return f"did you mean {match!r}?"
    return f"known: {', '.join(names)}"


def check_choice(what: str, value: str, known: Iterable[str]) -> str:
    """Return `value` if it is one of `known`.

    Raises:
        InputError: it is not; the message has the closest known name.
    """
    names = list(known)
    if value not in names:
        raise InputError(f"unknown {what} {value!r}: {did_you_mean(value, names)}")
    return value


def check_at_least(what: str, value: int, least: int) -> int:
    """Return `value` if it is `least` or more.

    Raises:
        InputError: it is not; the message has the value and the limit.
    """
    if value < least:
        raise InputError(f"{what} is {value}: it must be at least {least}")
    return value


def check_range(what: str, value: int, least: int, most: int) -> int:
    """Return `value` if it is between `least` and `most`.

    Raises:
        InputError: it is not; the message has the value and the limit.
    """
    if value > most:
        raise InputError(f"{what} is {value}: it must be at most {most}")
    return check_at_least(what, value, least)
