"""`qubic-lab token …`: tokens of HTTP clients of a coordinator beyond loopback, and of a cluster's members."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from qubic_lab.cli import options
from qubic_lab.cli.console import Commands, note, print_json, print_table
from qubic_lab.errors import InputError, NotFoundError, did_you_mean
from qubic_lab.settings import settings
from qubic_lab.wire.members import new_node_token

File = Annotated[Path | None, Option(help="File of tokens.", show_default="QUBIC_LAB_API_TOKENS")]
Name = Annotated[str, Argument(metavar="NAME", help="Name of the client.")]


def add(
    name: Name,
    per_minute: Annotated[int, Option(help="Requests a minute.")] = 120,
    read_only: Annotated[bool, Option("--read-only", help="It may neither ask questions nor change anything.")] = False,
    file: File = None,
) -> None:
    """Add a token and print it once.

    The file keeps only its hash. Running coordinators accept the token at once.
    """
    from qubic_lab.api.access import ApiToken, hash_token, new_token, read_tokens, write_tokens

    path = _path(file)
    known = read_tokens(path) if path.exists() else []
    if any(each.name == name for each in known):
        raise InputError(f"{name!r} has a token: remove it first, or give another name")
    token = new_token()
    write_tokens(path, [*known, ApiToken(name, hash_token(token), per_minute, read_only)])
    note(f"the token of {name}; it is not shown again:")
    typer.echo(token)


def list_(file: File = None, json: options.Json = False) -> None:
    """List clients that have a token: rates, and what they may do."""
    from qubic_lab.api.access import read_tokens

    known = read_tokens(_path(file))
    if json:
        listed = [{"name": each.name, "per_minute": each.per_minute, "read_only": each.read_only} for each in known]
        print_json({"tokens": listed})
        return
    rows = [(each.name, str(each.per_minute), "read" if each.read_only else "read, ask, change") for each in known]
    print_table(("name", "requests a minute", "may"), rows)


def remove(name: Name, file: File = None) -> None:
    """Remove a token, which is refused from now on."""
    from qubic_lab.api.access import read_tokens, write_tokens

    path = _path(file)
    known = read_tokens(path)
    kept = [each for each in known if each.name != name]
    if len(kept) == len(known):
        raise NotFoundError(f"{name!r} has no token: {did_you_mean(name, [each.name for each in known])}")
    write_tokens(path, kept)


def new() -> None:
    """Print a new QUBIC_LAB_NODE_TOKEN.

    Coordinators and nodes of one cluster need the same one.
    """
    typer.echo(new_node_token())


def _path(file: Path | None) -> Path:
    """Return the file of tokens from the option or the settings."""
    path = file or settings().api_tokens
    if path is None:
        raise InputError("no file of tokens is given: use --file, or set QUBIC_LAB_API_TOKENS")
    return path.expanduser()


COMMANDS: Commands = {
    "add": (add, "notebook --per-minute 60 --file ~/qubic-lab/tokens.yaml"),
    "list": (list_, "--json"),
    "remove": (remove, "notebook"),
    "new": (new, ""),
}
