"""Reading systemd's units, so that a host of the test bed runs the commands that a real host would."""

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from qubic_lab.errors import InputError

Settings = dict[str, list[str]]
"""The values of each key of a section, in the order of their lines."""
_SPEC = re.compile(r"%(.)")
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_PREFIXES = "-@:+!|"
_FOLDERS = {"RuntimeDirectory": "/run", "StateDirectory": "/var/lib", "CacheDirectory": "/var/cache"}
_FOLDERS |= {"LogsDirectory": "/var/log", "ConfigurationDirectory": "/etc"}
_UNITS_S = {"": 1.0, "s": 1.0, "sec": 1.0, "ms": 1e-3, "min": 60.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Command:
    """A command line of a unit; with `may_fail` its failure does not count."""

    arguments: tuple[str, ...]
    may_fail: bool = False


@dataclass(frozen=True)
class Unit:
    """What a host does for a unit.

    Attributes:
        name: without `.service`.
        before: commands that end before the service starts.
        commands: the service; several if it is a oneshot.
        environment: variables that the unit sets, those of its files included.
        user: who runs it; empty: root.
        groups: groups that the user has besides its own.
        folder: its working directory; empty: none.
        folders: directories that it needs, such as /var/lib/qubic-lab.
        restarts: whether a service that has ended starts again, after `pause_s`.
        stop_s: time limit of its end after SIGTERM.
        after: units that start earlier.
    """

    name: str
    before: tuple[Command, ...] = ()
    commands: tuple[Command, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    user: str = ""
    groups: tuple[str, ...] = ()
    folder: str = ""
    folders: tuple[str, ...] = ()
    restarts: bool = False
    pause_s: float = 0.1
    stop_s: float = 90.0
    after: tuple[str, ...] = ()


def read_unit(name: str, texts: Iterable[str], host: str, files: Mapping[str, str]) -> Unit:
    """Return the unit `name` (of a template: `NAME@INSTANCE`) from its file and its drop-ins.

    Args:
        name: without `.service`.
        texts: the unit's file, then its drop-ins in their order.
        host: the host's name, for `%H`.
        files: contents of environment files by their paths.

    Raises:
        InputError: it has no command, or needs an environment file that is missing.
    """
    found: dict[str, Settings] = {}
    for text in texts:
        _read_into(found, text)
    service, unit = found.get("Service", {}), found.get("Unit", {})

    def expand(text: str) -> str:
        known = {"H": host, "l": host, "i": name.partition("@")[2], "n": f"{name}.service", "h": "/root", "%": "%"}
        known |= {"N": name, "p": name.partition("@")[0], "t": "/run", "S": "/var/lib", "C": "/var/cache", "E": "/etc"}
        return _SPEC.sub(lambda match: known.get(match[1], match[0]), text)

    def last(key: str, default: str = "") -> str:
        return expand((service.get(key) or [default])[-1])

    environment: dict[str, str] = {}
    for line in service.get("Environment", []):
        environment |= dict(part.split("=", 1) for part in shlex.split(expand(line)))
    for path in map(expand, service.get("EnvironmentFile", [])):
        content = files.get(path.removeprefix("-"))
        if content is not None:
            environment |= read_environment(content)
        elif not path.startswith("-"):
            raise InputError(f"{name}.service needs {path}, which is missing on {host}")
    commands = tuple(_command(expand(line), environment) for line in service.get("ExecStart", []))
    if not commands:
        raise InputError(f"{name}.service on {host} has no ExecStart: a test bed cannot run it")
    folders = [
        f"{place}/{each}" for key, place in _FOLDERS.items() for each in expand(" ".join(service.get(key, []))).split()
    ]
    return Unit(
        name,
        tuple(_command(expand(line), environment) for line in service.get("ExecStartPre", [])),
        commands,
        environment,
        last("User"),
        tuple(" ".join(map(expand, service.get("SupplementaryGroups", []))).split()),
        last("WorkingDirectory").removeprefix("-"),
        tuple(folders),
        last("Restart", "no") != "no" and last("Type") != "oneshot",
        _seconds(last("RestartSec", "0.1")),
        _seconds(last("TimeoutStopSec", "90")),
        tuple(each.removesuffix(".service") for line in unit.get("After", []) for each in expand(line).split()),
    )


def in_order(units: Iterable[Unit]) -> list[Unit]:
    """Return units so that each comes after those that it names in `after`."""
    waiting, ordered = {unit.name: unit for unit in units}, list[Unit]()
    while waiting:
        free = [unit for unit in waiting.values() if not any(name in waiting for name in unit.after)]
        for unit in free or list(waiting.values()):  # a circle: as they come
            ordered.append(waiting.pop(unit.name))
    return ordered


def read_environment(text: str) -> dict[str, str]:
    """Return the variables of an environment file."""
    found = {}
    for line in text.splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith(("#", ";")):
            found[name.strip()] = "".join(shlex.split(value)) if value[:1] in "\"'" else value.strip()
    return found


def unit_texts(folders: Sequence[Path], name: str) -> list[str]:
    """Return the texts of a unit: its file or its template's from the first folder, then all drop-ins."""
    template = re.sub("@.*", "@", name)
    names = list(dict.fromkeys((name, template)))
    paths = [path for folder in folders for each in names if (path := folder / f"{each}.service").is_file()][:1]
    prefixes = [name[: match.end()] for match in re.finditer("-", template)]
    for each in (*prefixes, *reversed(names)):
        for folder in reversed(folders):
            paths += sorted((folder / f"{each}.service.d").glob("*.conf"))
    return [path.read_text() for path in paths]


def _read_into(found: dict[str, Settings], text: str) -> None:
    """Add a file's lines to what earlier files say; an empty value forgets the earlier ones."""
    section: Settings = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = line.strip()
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), {})
        elif "=" in line and not line.startswith(("#", ";")):
            key, _, value = (part.strip() for part in line.partition("="))
            section[key] = [*section.get(key, []), value] if value else []


def _command(line: str, environment: Mapping[str, str]) -> Command:
    """Return a command with its variables: `${NAME}` is one word, `$NAME` as many as it has."""
    flags = line[: len(line) - len(line.lstrip(_PREFIXES))]
    arguments: list[str] = []
    for word in shlex.split(line[len(flags) :]):
        whole = re.fullmatch(r"\$(\w+)", word)
        if whole:
            arguments += shlex.split(environment.get(whole[1], ""))
        else:
            arguments.append(_VARIABLE.sub(lambda match: environment.get(match[1] or match[2], ""), word))
    return Command(tuple(arguments), "-" in flags)


def _seconds(text: str) -> float:
    if text == "infinity":
        return 1e9
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", text)
    return sum(float(number) * _UNITS_S.get(unit, 1.0) for number, unit in parts)
