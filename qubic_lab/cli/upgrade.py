"""`qubic-lab cluster upgrade`: each member is drained, started again and back before the next; no request is lost."""

import shlex
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar
from urllib.parse import quote, urlsplit

import typer
from typer import Option

from qubic_lab.cli import options
from qubic_lab.cli.console import note, print_json, read_seconds, split_list
from qubic_lab.cluster import background
from qubic_lab.errors import InputError, QubicLabError, did_you_mean
from qubic_lab.settings import settings

if TYPE_CHECKING:
    from qubic_lab.api.client import CoordinatorClient
    from qubic_lab.api.schemas import NodeStatus

LOOK_S = 0.1
DRAINING = "draining"
T = TypeVar("T")


@dataclass(frozen=True)
class _Members:
    """The coordinators' addresses, and what starts a member again; None: members of that kind stay as they are."""

    urls: "Sequence[str]"
    restart_node: "Callable[[NodeStatus], None] | None"
    restart_coordinator: Callable[[str], None] | None


def upgrade(
    node_command: Annotated[
        str | None,
        Option(
            "--node",
            metavar="COMMAND",
            help="Upgrades and restarts a node elsewhere: 'ssh {host} sudo systemctl restart qubic-node'; also {name}.",
            show_default="of the cluster on this machine",
        ),
    ] = None,
    coordinator_command: Annotated[
        str | None,
        Option(
            "--coordinator", metavar="COMMAND", help="The same of a coordinator.", show_default="none, or as --node"
        ),
    ] = None,
    coordinators: Annotated[
        str | None, Option(metavar="URL,…", help="All coordinators.", show_default="QUBIC_LAB_COORDINATOR")
    ] = None,
    only: Annotated[str | None, Option(metavar="NODE,…", help="Only these nodes.", show_default="all")] = None,
    timeout: Annotated[str, Option(help="Time for a member to end its requests, and again to return.")] = "600s",
    json: options.Json = False,
) -> None:
    """Start members again, one by one, losing no request.

    A node gets no new requests, finishes those that it has, is started again, and is back before the next one ends.
    Coordinators follow. A member that does not return ends the upgrade, and the others stay as they are. Without
    commands, members of the cluster on this machine start with the program that is installed now; Redis and the
    supervisor stay.
    """
    from qubic_lab.api.client import CoordinatorClient

    within_s = read_seconds("--timeout", timeout)
    if node_command or coordinator_command:
        members = _elsewhere(node_command, coordinator_command, coordinators)
    else:
        members = _of_this_machine(coordinators, within_s)
    done: list[str] = []
    with ExitStack() as stack:
        clients = [stack.enter_context(CoordinatorClient(url, answer_s=within_s)) for url in members.urls]
        if members.restart_node is not None:
            for node in _chosen(clients[0].nodes(), only):
                note(f"node {node.name}: drained")
                _upgrade_node(clients, node, members.restart_node, within_s)
                done.append(node.name)
        if members.restart_coordinator is not None:
            for client in clients:
                note(f"coordinator {client.url}: ends its requests")
                _upgrade_coordinator(client, members.restart_coordinator, within_s)
                done.append(client.url)
    if json:
        print_json({"upgraded": done})
        return
    for name in done:
        typer.echo(name)


def _elsewhere(node_command: str | None, coordinator_command: str | None, urls: str | None) -> _Members:
    """Return members that commands start again."""

    def node(found: "NodeStatus") -> None:
        _run(node_command or "", name=found.name, host=urlsplit(f"//{found.address}").hostname or found.address)

    def coordinator(url: str) -> None:
        _run(coordinator_command or "", name=url, host=urlsplit(url).hostname or url)

    return _Members(
        split_list("--coordinators", urls or settings().coordinator),
        node if node_command else None,
        coordinator if coordinator_command else None,
    )


def _of_this_machine(urls: str | None, within_s: float) -> _Members:
    """Return the members of this machine's cluster; an InputError if none runs, or `urls` are given."""
    from qubic_lab.cli.cluster import cluster_folder

    local = background.running(cluster_folder())
    if local is None:
        raise InputError("no cluster runs on this machine: give --node COMMAND, which restarts a node elsewhere")
    if urls is not None:
        raise InputError("--coordinators is for members elsewhere: give --node or --coordinator with it")
    names = {url: member.name for url, member in zip(local.urls, local.of_kind("coordinator"), strict=True)}

    def restart(name: str) -> None:
        background.restart_member(cluster_folder(), name, within_s)

    return _Members(local.urls, lambda node: restart(node.name), lambda url: restart(names[url]))


def _chosen(nodes: "Sequence[NodeStatus]", only: str | None) -> "list[NodeStatus]":
    known = {node.name: node for node in nodes}
    names = list(known) if only is None else split_list("--only", only)
    if wrong := [name for name in names if name not in known]:
        raise InputError(f"--only {wrong[0]!r}: {did_you_mean(wrong[0], known)}")
    return [known[name] for name in names]


def _upgrade_node(
    clients: "Sequence[CoordinatorClient]", node: "NodeStatus", restart: "Callable[[NodeStatus], None]", within_s: float
) -> None:
    """Drain a node, start it again, and wait until each coordinator may choose it.

    Raises:
        InputError: no other node is open.
        QubicLabError: it does not return.
    """
    first, path = clients[0], f"/api/cluster/nodes/{quote(node.name, safe='')}/drain"

    def seen(client: "CoordinatorClient") -> "NodeStatus | None":
        return next((each for each in client.nodes() if each.name == node.name), None)

    def others() -> list[str]:
        return [each.name for each in first.nodes() if each.gate is None and each.name != node.name]

    if not _until(others, within_s):
        raise InputError(f"no other node is open while {node.name} is upgraded: clients would be refused; add a node")
    first.call("POST", path)
    try:
        _until(lambda: (found := seen(first)) is None or found.outstanding.requests == 0, within_s)
        before_s = time.monotonic()
        restart(node)

        def returned() -> bool:
            found = seen(first)
            new = found is not None and found.registered_s <= time.monotonic() - before_s
            return new and found is not None and found.gate in (None, DRAINING) and not found.trouble

        if not _until(returned, within_s):
            raise QubicLabError(
                f"node {node.name} did not return within {within_s:g} s of its restart: see its log "
                f"(journalctl -u qubic-node); the others were not touched"
            )
    finally:
        if seen(first) is not None:
            first.call("DELETE", path)
    _until(lambda: all((found := seen(client)) and found.gate is None for client in clients), within_s)


def _upgrade_coordinator(client: "CoordinatorClient", restart: Callable[[str], None], within_s: float) -> None:
    """Start a coordinator again, and wait until it has nodes.

    Raises:
        QubicLabError: it does not return.
    """
    before = client.status().coordinator
    restart(client.url)

    def returned() -> bool:
        try:
            found = client.status()
        except QubicLabError:  # it starts
            return False
        return found.ready and found.coordinator != before

    if not _until(returned, within_s):
        raise QubicLabError(
            f"coordinator {client.url} did not return within {within_s:g} s of its restart: see its log "
            "(journalctl -u qubic-orchestrator)"
        )


def _until(what: Callable[[], T], within_s: float) -> T:
    """Return what a function returns as soon as that is true, or at the end of the time."""
    deadline = time.monotonic() + within_s
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return found


def _words(command: str, **values: str) -> Iterator[str]:
    for word in shlex.split(command):
        try:
            yield word.format(**values)
        except (KeyError, IndexError, ValueError) as error:
            raise InputError(f"{word!r} of a command: only {{host}} and {{name}} are known ({error})") from error


def _run(command: str, **values: str) -> None:
    """Run a command; a QubicLabError with its last line if it fails."""
    words = [*_words(command, **values)]
    try:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError as error:
        raise InputError(f"{words[0]!r} cannot be run: {error.strerror}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "it said nothing").rpartition("\n")[2]
        raise QubicLabError(f"'{shlex.join(words)}' ended with status {done.returncode}: {last}")
