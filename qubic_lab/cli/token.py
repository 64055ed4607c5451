"""`qubic-lab token …`: who may ask a coordinator beyond loopback."""

from pathlib import Path
from typing import Annotated

import typer

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, print_table
from qubic_lab.errors import InputError, NotFoundError, did_you_mean

File = Annotated[Path | None, typer.Option(help="File of tokens.", show_default="QUBIC_LAB_API_TOKENS")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose token.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(help="Make and withdraw the tokens that HTTP clients show.", rich_markup_mode=None)
    group.command(epilog="Example: qubic-lab token add notebook --per-minute 60 --file ~/qubic-lab/tokens.yaml")(add)
    group.command("list", epilog="Example: qubic-lab token list --json")(list_)
    group.command(epilog="Example: qubic-lab token remove notebook")(remove)
    app.add_typer(group, name="token")


def add(
    name: Name,
    per_minute: Annotated[int, typer.Option(help="Requests a minute.")] = 120,
    file: File = None,
) -> None:
    """Make a token and print it, once: the file keeps its hash alone. Running coordinators read it at once."""
    from qubic_lab.api.access import ApiToken, hash_token, new_token, read_tokens, write_tokens

    path = _path(file)
    known = read_tokens(path) if path.exists() else []
    if any(each.name == name for each in known):
        raise InputError(f"{name!r} has a token: remove it first, or give another name")
    token = new_token()
    write_tokens(path, [*known, ApiToken(name, hash_token(token), per_minute)])
    note(f"the token of {name}; it is not shown again:")
    typer.echo(token)


def list_(file: File = None, json: options.Json = False) -> None:
    """Tell who has a token, and their rates."""
    from qubic_lab.api.access import read_tokens

    known = read_tokens(_path(file))
    if json:
        print_json({"tokens": [{"name": each.name, "per_minute": each.per_minute} for each in known]})
        return
    print_table(("name", "requests a minute"), [(each.name, str(each.per_minute)) for each in known])


def remove(name: Name, file: File = None) -> None:
    """Withdraw a token; it is refused from now on."""
    from qubic_lab.api.access import read_tokens, write_tokens

    path = _path(file)
    known = read_tokens(path)
    kept = [each for each in known if each.name != name]
    if len(kept) == len(known):
        raise NotFoundError(f"{name!r} has no token: {did_you_mean(name, [each.name for each in known])}")
    write_tokens(path, kept)


def _path(file: Path | None) -> Path:
    from qubic_lab.settings import settings

    path = file or settings().api_tokens
    if path is None:
        raise InputError("no file of tokens is named: give --file, or set QUBIC_LAB_API_TOKENS")
    return path.expanduser()
