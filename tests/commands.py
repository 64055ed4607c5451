"""What became of a command line; the fixture `here` runs one in this process."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Ended(NamedTuple):
    """Exit status and output of a command."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout of a command that ended well and had nothing else to say."""
        assert (self.status, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return json.loads(self.out)

    def failed(self, status: int) -> str:
        """The one line of a command that failed, which left stdout empty."""
        assert (self.status, self.out) == (status, "")
        assert self.err.startswith("error: ") and self.err.endswith("\n") and self.err.count("\n") == 1
        return self.err


Run = Callable[[str], Ended]


def parse(arguments: list[str]) -> str:
    """Return the path of the command that would run, such as "model fetch"; it is not run.

    Raises:
        TyperException: there is no such command, or it does not take these arguments.
    """
    from typer.core import TyperGroup
    from typer.main import get_command

    from qubic_lab.cli.main import app

    command, name, parent, path = get_command(app), "qubic-lab", None, []
    while True:
        context = command.make_context(name, list(arguments), parent=parent)
        if not isinstance(command, TyperGroup):
            return " ".join(path)
        name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
        path.append(name)
        parent = context
