"""Runs Pulumi's own command on a folder with the program and the description of its resources, and reads its state."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qubic_lab.errors import QubicLabError

NAME = "qubic-ai"
REMEDY = "install it as https://www.pulumi.com/docs/install says, such as: curl -fsSL https://get.pulumi.com | sh"
REQUIRED = "'pulumi>=3.200' 'pulumi-gcp>=10,<11'"
"""In an environment of their own, because Pulumi refuses our version of protobuf."""
_CHECKOUT, _PACKAGED = Path(__file__).parents[2] / "launch" / "gcp", Path(__file__).parent / "gcp"
FOLDER = _CHECKOUT if _CHECKOUT.is_dir() else _PACKAGED
"""The Pulumi program, and the script that machines run at each start."""


def startup_script() -> str:
    """Return the script that machines run at each start."""
    return (FOLDER / "startup.sh").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Made:
    """A resource that exists, by Pulumi's state."""

    name: str
    type: str
    outputs: Mapping[str, Any]


class Engine:
    """Pulumi with its state in a folder; each part is a stack of its own.

    `packages` is the environment with `pulumi` and `pulumi_gcp`, which `make gcp` makes. `show` gets each line that
    Pulumi prints.

    Raises:
        QubicLabError: the command or the environment is missing.
    """

    def __init__(self, folder: Path, packages: Path, show: Callable[[str], None]) -> None:
        found = shutil.which("pulumi")
        if found is None:
            raise QubicLabError(f"pulumi is not on the PATH: {REMEDY}")
        if not (packages / "bin" / "python").exists():
            install = f"python3 -m venv {packages} && {packages}/bin/pip install {REQUIRED}"
            raise QubicLabError(f"Pulumi's packages are not in {packages}: run make gcp in a checkout, or {install}")
        self._command, self._folder, self._packages, self._show = found, folder, packages, show

    def preview(self, part: str, described: Sequence[Mapping[str, Any]]) -> None:
        """Show what `up` would change; nothing is changed."""
        self._describe(part, described)
        self._run("preview", "--non-interactive", "--stack", part)

    def up(self, part: str, described: Sequence[Mapping[str, Any]]) -> None:
        """Make, change or remove resources until they are those described.

        Raises:
            QubicLabError: Pulumi fails; the message has its error.
        """
        self._describe(part, described)
        self._run("up", "--yes", "--skip-preview", "--non-interactive", "--stack", part)

    def down(self, part: str) -> None:
        """Remove all resources of a part, and its stack; nothing happens if there is none.

        Raises:
            QubicLabError: Pulumi fails, or something is left.
        """
        if not self.made(part):
            return
        self._run("destroy", "--yes", "--skip-preview", "--non-interactive", "--stack", part)
        if left := self.made(part):
            names = ", ".join(each.name for each in left)
            raise QubicLabError(f"pulumi has ended, but these are left: {names}; run qubic-lab gcp down again")
        self._run("stack", "rm", "--yes", part)

    def refresh(self, part: str) -> None:
        """Ask Google what there is, and put it into the state."""
        self._run("refresh", "--yes", "--skip-preview", "--non-interactive", "--stack", part)

    def made(self, part: str) -> tuple[Made, ...]:
        """Return the resources of a part by the state, without those that Pulumi has for itself.

        Raises:
            QubicLabError: Pulumi fails, or prints no state.
        """
        self._prepare()
        stacks = self._read("stack", "ls", "--json")
        if part not in {str(each["name"]).rpartition("/")[2] for each in stacks}:
            return ()
        state = self._read("stack", "export", "--stack", part)
        rows = (state.get("deployment") or {}).get("resources") or ()
        return tuple(
            Made(str(row["urn"]).rpartition("::")[2], str(row["type"]), row.get("outputs") or {})
            for row in rows
            if not str(row["type"]).startswith("pulumi:")
        )

    def _describe(self, part: str, described: Sequence[Mapping[str, Any]]) -> None:
        self._prepare()
        self._write("resources.json", described)
        self._run("stack", "select", "--create", part)

    def _prepare(self) -> None:
        """Write Pulumi's project: the program and where its packages are."""
        (self._folder / "state").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(FOLDER / "__main__.py", self._folder / "__main__.py")
        runtime = {"name": "python", "options": {"virtualenv": str(self._packages.absolute())}}
        self._write("Pulumi.yaml", {"name": NAME, "runtime": runtime, "description": "Made by qubic-lab gcp"})

    def _write(self, name: str, content: Any) -> None:
        """Write JSON, which is also YAML."""
        (self._folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")

    def _environment(self) -> dict[str, str]:
        own = {
            "PULUMI_BACKEND_URL": (self._folder / "state").absolute().as_uri(),
            "PULUMI_CONFIG_PASSPHRASE": "",  # the state holds no secret
            "PULUMI_SKIP_UPDATE_CHECK": "true",
        }
        return own | os.environ  # a team's own backend and passphrase stay

    def _read(self, *arguments: str) -> Any:
        """Return what a command of Pulumi prints as JSON."""
        done = subprocess.run(
            [self._command, *arguments], cwd=self._folder, env=self._environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise _failure(arguments, done.returncode, done.stderr.splitlines())
        try:
            return json.loads(done.stdout)
        except ValueError:
            raise QubicLabError(f"pulumi {' '.join(arguments)} printed {done.stdout[:80]!r}, no JSON") from None

    def _run(self, *arguments: str) -> None:
        """Run a command of Pulumi and show what it prints; if we are told to end, it ends what is under way first."""
        lines: list[str] = []
        with subprocess.Popen(
            [self._command, *arguments],
            cwd=self._folder,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # else Ctrl-C would reach it twice, and the second ends it at once
        ) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip())
                    self._show(lines[-1])
            except BaseException:
                process.send_signal(signal.SIGINT)
                process.wait()
                raise
        if process.returncode:
            raise _failure(arguments, process.returncode, lines)


def _failure(arguments: Sequence[str], status: int, lines: Sequence[str]) -> QubicLabError:
    said = [line.strip() for line in lines if "error:" in line] or [line.strip() for line in lines if line.strip()]
    why = said[-1].removeprefix("error:").strip() if said else "it says nothing"
    return QubicLabError(f"pulumi {arguments[0]} failed with status {status}: {why}")
