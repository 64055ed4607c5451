"""Reads files of JSON lines, with file and line in every error."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError, did_you_mean


def read_objects(file: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object with its place `FILE:LINE`; empty lines are skipped.

    Args:
        file: in UTF-8, with or without a byte order mark.
        what: the plural noun for the content, for errors.

    Raises:
        InputError: the file cannot be read or is empty, or a line is not a JSON object.
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
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{place} is not valid JSON ({error})") from error
            if not isinstance(fields, dict):
                raise InputError(f"{place} holds a {type(fields).__name__}: an object with named fields is needed")
            yield place, fields


def read_texts(file: Path, what: str, known: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each object, which has texts as values and only the `known` fields, with its place.

    Raises:
        InputError: as `read_objects`, or a line has other fields or values.
    """
    for place, fields in read_objects(file, what):
        for name, value in fields.items():
            if name not in known:
                raise InputError(f"{place} has an unknown field {name!r}: {did_you_mean(name, known)}")
            if not isinstance(value, str):
                raise InputError(f"{place}: {name} is {value!r}: a text is needed")
        yield place, fields


def check_present(place: str, fields: Mapping[str, str], names: Iterable[str]) -> None:
    """Check that no field is missing or empty.

    Raises:
        InputError: a field is; names the place and the field.
    """
    for name in names:
        if not fields.get(name, "").strip():
            raise InputError(f"{place} has no {name}")
