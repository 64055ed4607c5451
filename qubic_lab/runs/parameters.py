"""A notebook's code and its `parameters` cell, read without running anything."""

import ast
import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

from pydantic import TypeAdapter, ValidationError

from qubic_lab.errors import InputError, did_you_mean

# The types that papermill can pass to a notebook; it would silently turn anything else into a string.
NAMED_TYPES: dict[str, type] = {each.__name__: each for each in (bool, int, float, str, list, dict)}
INJECTED = "# Parameters\n"
"""How papermill begins the cell with the given values."""


@dataclass(frozen=True)
class Parameter:
    """One name of the `parameters` cell: its default and the type that a value must have."""

    default: Any
    type: Any

    def __str__(self) -> str:
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)


@dataclass(frozen=True)
class NotebookSource:
    """A notebook before it runs: its code cells in order and the parameters that it takes."""

    path: Path
    code_cells: tuple[str, ...]
    parameters: Mapping[str, Parameter]

    def complete(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters: the given ones, and the notebook's defaults for the others."""
        return {name: given.get(name, parameter.default) for name, parameter in self.parameters.items()}

    def check(self, name: str, value: Any) -> None:
        """Make sure that the notebook takes a parameter of that name and type; the InputError says what it takes."""
        _check(name, value, self.parameters, self.path.name)


def read_injected(namespace: MutableMapping[str, Any]) -> None:
    """Check the values that papermill has put into a running notebook, and read those that are JSON texts.

    Call it with `globals()` in the cell after the parameters. `papermill -p reading '{"stamp": "open"}'` gives a text,
    which becomes the dict here; papermill itself only warns of a name that the notebook does not have.

    Raises:
        InputError: an unknown name, or a value of another type.
    """
    injected = [cell for cell in namespace.get("In", ()) if cell.startswith(INJECTED)]
    taken = {name: Parameter(None, kind) for name, kind in namespace.get("__annotations__", {}).items()}
    for statement in ast.parse(injected[-1]).body if injected else ():
        if not (isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)):
            continue
        name = statement.targets[0].id
        value, kind = namespace[name], getattr(taken.get(name), "type", None)
        if isinstance(value, str) and (get_origin(kind) or kind) in (list, dict):
            try:
                value = json.loads(value)
            except ValueError as error:
                raise InputError(f"parameter {name} is {value!r}: give {taken[name]} as JSON ({error})") from None
        _check(name, value, taken, "this notebook")
        namespace[name] = value


def _check(name: str, value: Any, parameters: Mapping[str, Parameter], taker: str) -> None:
    if name not in parameters:
        raise InputError(f"unknown parameter {name!r} of {taker}: {did_you_mean(str(name), parameters)}")
    try:
        TypeAdapter(parameters[name].type).validate_python(value, strict=True)
    except ValidationError:
        raise InputError(f"parameter {name} is {value!r}: {taker} takes {parameters[name]}") from None


def read_source(path: Path) -> NotebookSource:
    """Read a notebook's code and parameters.

    Raises:
        InputError: not a notebook, not exactly one cell tagged `parameters`, or a parameter without a plain default.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        tagged = [_text(cell) for cell in code if "parameters" in cell["metadata"].get("tags", [])]
        texts = tuple(map(_text, code))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not a notebook: save it again from JupyterLab") from None
    if len(tagged) != 1:
        raise InputError(f"{path} has {len(tagged)} code cells tagged 'parameters': it must have exactly one")
    return NotebookSource(path, texts, _read_parameters(path, tagged[0]))


def _text(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])  # the file format allows one string as well as a list of lines


def _read_parameters(path: Path, code: str) -> dict[str, Parameter]:
    try:
        return dict(_read_parameter(statement) for statement in ast.parse(code).body)
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"{path}: the parameters cell holds more than lines of the form 'name: type = value': {error}"
        ) from None


def _read_parameter(statement: ast.stmt) -> tuple[str, Parameter]:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            return name, Parameter(ast.literal_eval(value), _type(annotation))
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            default = ast.literal_eval(value)
            return name, Parameter(default, Any if default is None else type(default))
    raise ValueError(ast.unparse(statement))


def _type(annotation: ast.expr) -> Any:
    """Turn an annotation into a type without evaluating it; papermill itself cannot read more than these, no union."""
    match annotation:
        case ast.Name(id=name) if name in NAMED_TYPES:
            return NAMED_TYPES[name]
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return list[_type(item)]  # type: ignore[misc]  # made at run time
    raise ValueError(f"type {ast.unparse(annotation)}")
