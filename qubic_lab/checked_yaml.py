"""Settings in YAML files, checked against dataclasses by pydantic: what is wrong becomes one line with a remedy."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from qubic_lab.errors import InputError, did_you_mean

T = TypeVar("T")
STRICT = ConfigDict(extra="forbid")
"""Set as `__pydantic_config__ = STRICT` in each dataclass that is read from a file: unknown names are errors."""
MOST_VALUES = 1_000_000
"""In a YAML file: a few lines of nested aliases could stand for more than any memory holds."""
MOST_LEVELS = 100
_REMEDIES = {
    "string_type": "it must be a text; put it in quotes",
    "int_type": "it must be a whole number",
    "int_from_float": "it must be a whole number",
    "float_type": "it must be a number",
    "bool_type": "it must be true or false",
    "list_type": "it must be a list",
    "tuple_type": "it must be a list",
    "dict_type": "it must be a map of names and values",
    "dataclass_type": "it must be a map of names and values",
    "model_type": "it must be a map of names and values",
}
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@cache
def _codec(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def codec(kind: type[T]) -> TypeAdapter[T]:
    """Return what reads and writes values of a type; to make it takes milliseconds, so it is kept."""
    known: Any = kind  # mypy doubts that each type has a hash
    return _codec(known)


class _Loader(yaml.SafeLoader):
    """The loader of plain values; it takes no more brackets within each other than MOST_LEVELS.

    The scanner looks at all open ones before each next sign.
    """

    flow_level: int

    def fetch_flow_collection_start(self, TokenClass: type[Any]) -> None:
        """Open a bracket; a RecursionError if too many are open."""
        if self.flow_level >= MOST_LEVELS:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file; None if it is empty.

    Raises:
        InputError: the file cannot be read, or is not YAML.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        values = _count(content, {})
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its path") from error
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # ValueError: what looks like a date, say
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path} is nested too deeply, or contains itself: use fewer levels") from None
    if values > MOST_VALUES:
        raise InputError(f"{path} has more than {MOST_VALUES:,} values, aliases written out: use fewer of them")
    return content


def _count(content: Any, known: dict[int, int]) -> int:
    """Return the number of values with aliases written out; `known` has that of each map and list by its identity.

    Raises:
        RecursionError: it is nested too deeply, or a part contains itself.
    """
    if not isinstance(content, dict | list):
        return 1
    if known.get(id(content)) == 0:  # this one is being counted
        raise RecursionError
    if id(content) not in known:
        known[id(content)] = 0
        parts = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_count(part, known) for part in parts)
    return known[id(content)]


def check_content(kind: type[T], content: Any, where: Path | str = "") -> T:
    """Return the content of a YAML file, or a part of it, as a dataclass, a pydantic model or a collection of them.

    Values must have the exact types: no number is read from a text, no truth value from a number.

    Args:
        kind: its fields are the names that are known; `InputError`s of its own checks become part of the message.
        content: maps, lists and values, as `read_yaml` returns them.
        where: begins the message, such as the file's path.

    Raises:
        InputError: the first unknown name or wrong value: where it is, the value and the remedy.
    """
    try:
        return codec(kind).validate_json(json.dumps(content, default=_refuse), strict=True)
    except ValidationError as error:
        first = min(error.errors(include_url=False), key=lambda each: each["type"] not in _UNKNOWN)
        raise InputError(_prefixed(where, _message(kind, content, first))) from None
    except InputError as error:
        raise InputError(_prefixed(where, str(error))) from None
    except TypeError:  # a name that is a date, say
        raise InputError(_prefixed(where, "names must be texts: put them in quotes")) from None


def _refuse(value: Any) -> Any:
    raise InputError(f"{value} is read as a {type(value).__name__}: put it in quotes")


def _prefixed(*parts: object) -> str:
    return ": ".join(str(part) for part in parts if str(part))


def _message(kind: Any, content: Any, error: Mapping[str, Any]) -> str:
    """Return one of pydantic's errors in one line."""
    loc, what, value = error["loc"], error["type"], error["input"]
    if loc[-1:] == ("[key]",):  # a map's name that its type does not allow
        loc, what = loc[:-1], _UNKNOWN[0]
    name = str(loc[-1]) if loc else ""
    outside = _prefixed(*_labels(content, loc[:-1]))
    if what in _UNKNOWN:
        return _prefixed(outside, f"unknown name {name!r}", did_you_mean(name, _known(kind, loc[:-1])))
    if what == "literal_error":
        return _prefixed(outside, f"unknown {name} {value!r}", did_you_mean(str(value), _known(kind, loc)))
    if what == "missing":
        return _prefixed(outside, f"{name!r} is missing: add it")
    if what == "value_error":
        return _prefixed(*_labels(content, loc), error["ctx"]["error"])
    label = (_labels(content, loc) or ["the content"])[-1]
    remedy = _REMEDIES.get(what, error["msg"].replace("Input should be", "it must be"))
    return _prefixed(outside, f"{label} is {value!r}: {remedy}")


def _labels(content: Any, loc: Iterable[str | int]) -> list[str]:
    """Return the names on the way to a value; entries of lists are known by their own name, or by their number."""
    labels = []
    for step in loc:
        try:
            content = content[step]
        except (KeyError, IndexError, TypeError):
            content = None
        if isinstance(step, int):
            own = content.get("name") if isinstance(content, dict) else None
            labels.append(repr(own) if isinstance(own, str) else f"entry {step + 1}")
        else:
            labels.append(step)
    return labels


def _known(kind: Any, loc: Iterable[str | int]) -> list[str]:
    """Return the names of the fields, or the choices, that a type has at a place."""
    for step in loc:
        kind = _inner(kind)
        if dataclasses.is_dataclass(kind) or _is_model(kind):
            kind = get_type_hints(kind)[str(step)]
        else:  # the values of a map, the entries of a list
            kind = get_args(kind)[-1 if get_origin(kind) is not tuple else 0]
    kind = _inner(kind)
    if dataclasses.is_dataclass(kind):
        return [each.name for each in dataclasses.fields(kind)]
    if _is_model(kind):
        return list(kind.model_fields)
    if get_origin(kind) is Literal:
        return [str(choice) for choice in get_args(kind)]
    return [str(choice) for choice in get_args(_inner(get_args(kind)[0]))]  # a map's names


def _inner(kind: Any) -> Any:
    """Return a type that may be None without that."""
    others = [each for each in get_args(kind) if each is not type(None)]
    return others[0] if type(None) in get_args(kind) else kind


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
