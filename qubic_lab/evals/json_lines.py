"""Files of one JSON object a line: read with the place of each, so that an error can name file and line."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from qubic_lab.errors import InputError, did_you_mean


def read_texts(
    file: Path, what: str, known: Sequence[str], required: Sequence[str]
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each object, whose values are texts, with its place, `FILE:LINE`; empty lines are passed over.

    Args:
        file: in UTF-8, with or without a byte order mark.
        what: the lines are, in the plural, as errors name it.
        known: the fields that an object may have.
        required: those that it must have, first of all in errors.

    Raises:
        InputError: the file cannot be read or holds nothing, or a line is no JSON object or has other fields or values.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise InputError(
            f"{what} file {file} cannot be read ({reason}): give a file of one JSON object a line"
        ) from error
    if not any(line.strip() for line in lines):
        raise InputError(f"{what} file {file} holds no {what}: give one JSON object a line")
    for number, line in enumerate(lines, 1):
        if line.strip():
            place = f"{file}:{number}"
            yield place, _texts(line, place, known, required)


def _texts(line: str, place: str, known: Sequence[str], required: Sequence[str]) -> dict[str, str]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not valid JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"{place} holds a {type(fields).__name__}: an object with {', '.join(required)} is needed")
    for name, value in fields.items():
        if name not in known:
            raise InputError(f"{place} has an unknown field {name!r}: {did_you_mean(name, known)}")
        if not isinstance(value, str):
            raise InputError(f"{place}: {name} is {value!r}: a text is needed")
    return fields


def check_present(place: str, fields: Mapping[str, str], names: Iterable[str]) -> None:
    """Check that no field is missing or empty.

    Raises:
        InputError: one is; names the place and the field.
    """
    for name in names:
        if not fields.get(name, "").strip():
            raise InputError(f"{place} has no {name}")
