"""Reads files of text and of JSON lines, with file and line in every error."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qubic_lab.errors import InputError


def read_text(file: Path, what: str) -> str:
    """Return a file's text with its line ends, without a byte order mark; `what` is its content in errors, a plural.

    Raises:
        InputError: the file cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise InputError(f"{what} file {file} cannot be read ({reason}): give a file of UTF-8 text") from error


def read_objects(file: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each object with its place `FILE:LINE`; empty lines are skipped.

    Raises:
        InputError: as `read_text`, the file is empty, or a line is not a JSON object.
    """
    lines = re.split(r"\r\n?|\n", read_text(file, what))
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
