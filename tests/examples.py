"""Values of any frozen dataclass for tests: what a test does not name is zero, empty, false or None."""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


def example(kind: type[T], /, **known: Any) -> T:
    """Return a value of a dataclass with the known fields; the others have their defaults, or nothing in them."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        if field.name not in known and field.default is field.default_factory is dataclasses.MISSING:
            known[field.name] = _nothing(hints[field.name])
    return kind(**known)


def _nothing(hint: Any) -> Any:
    origin = get_origin(hint) or hint
    if origin is Literal:
        return get_args(hint)[0]
    if origin in (Union, types.UnionType) or origin is Any:
        return None
    if dataclasses.is_dataclass(hint):
        return example(hint)
    return {} if origin is Mapping else origin()
