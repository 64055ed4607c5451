"""Routes that show and manage the cluster: `/api/cluster/…`."""

from collections import Counter
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request

from qubic_lab import __version__
from qubic_lab.api.schemas import ClusterStatus, DeadTask, NodeStatus, Tasks, TaskState
from qubic_lab.cluster.coordinator import Coordinator, RedisTimes
from qubic_lab.cluster.http_health import health_url
from qubic_lab.cluster.links import NodeLinkReport, check_node
from qubic_lab.errors import NotFoundError, did_you_mean

MOST_DEAD = 100
NodeName = Annotated[str, Path(description="name of a node, from /api/cluster/nodes")]
TaskId = Annotated[str, Path(description="id of a task, from its answer")]
Iperf3 = Annotated[bool, Query(description="run iperf3, too, where it is installed on both nodes")]


def make_routes(coordinator: Coordinator) -> APIRouter:
    """Return the routes of a coordinator."""
    routes = APIRouter(prefix="/api/cluster")
    _add_cluster(routes, coordinator)
    _add_tasks(routes, coordinator)
    _add_network(routes, coordinator)
    return routes


def _add_cluster(routes: APIRouter, coordinator: Coordinator) -> None:
    @routes.get("/status", tags=["cluster"])
    async def status(request: Request) -> ClusterStatus:
        """Return the state of the cluster."""
        gates = Counter(str(view.gate or "open") for view in coordinator.nodes())
        return ClusterStatus(
            coordinator=coordinator.name,
            version=__version__,
            ready=gates["open"] > 0,
            nodes=dict(gates),
            working=coordinator.working,
            tasks=Tasks(**asdict(await coordinator.counts())),
            read_only=getattr(request.state, "read_only", False),
        )

    @routes.get("/nodes", tags=["cluster"])
    async def nodes() -> list[NodeStatus]:
        """Return each node's capabilities, its health, and why it gets no requests if so."""
        return [NodeStatus.of(view) for view in coordinator.nodes()]

    @routes.post("/nodes/{name:path}/drain", status_code=204, tags=["cluster"])
    async def drain(name: NodeName) -> None:
        """Let a node finish its requests and get no new ones."""
        await coordinator.drain(name, True)

    @routes.delete("/nodes/{name:path}/drain", status_code=204, tags=["cluster"])
    async def end_drain(name: NodeName) -> None:
        """Let a node get requests again."""
        await coordinator.drain(name, False)


def _add_tasks(routes: APIRouter, coordinator: Coordinator) -> None:
    @routes.get("/tasks", tags=["cluster"])
    async def tasks() -> Tasks:
        """Return the number of tasks by state, and the tasks that used up their attempts."""
        letters = (await coordinator.dead_letters())[-MOST_DEAD:]
        dead = tuple(DeadTask(task_id=letter.task_id, story=list(letter.story)) for letter in letters)
        return Tasks(**asdict(await coordinator.counts()), dead_letters=dead)

    @routes.get("/tasks/{task_id}", tags=["cluster"])
    async def task(task_id: TaskId) -> TaskState:
        """Return the state of a task, and how it ended."""
        state = await coordinator.call(coordinator.queue.state, task_id)
        progress = await coordinator.call(coordinator.queue.look, task_id)
        end = progress.outcome
        return TaskState(
            task_id=task_id,
            state=end.state if end else state,
            tokens=len(progress.items),
            attempts=end.attempts if end else 0,
            why=end.why if end else "",
            story=list(end.story) if end else [],
            result=end.result if end else None,
        )

    @routes.delete("/tasks/{task_id}", tags=["cluster"])
    async def cancel(task_id: TaskId) -> TaskState:
        """Cancel a task that has not ended yet."""
        await coordinator.cancel(task_id)
        return await task(task_id)


def _add_network(routes: APIRouter, coordinator: Coordinator) -> None:
    @routes.get("/nodes/{name:path}/links", tags=["network"])
    async def links(name: NodeName, iperf3: Iperf3 = False) -> NodeLinkReport:
        """Let a node measure its links to all others; this takes a few seconds per link.

        With `iperf3` it also runs iperf3, where that is installed on both nodes.
        """
        nodes = {view.record.id: view.record.registration for view in coordinator.nodes()}
        if name not in nodes:
            raise NotFoundError(f"no node {name!r} is registered: {did_you_mean(name, nodes)}")
        node = nodes.pop(name)
        addresses = {other: registration.address for other, registration in nodes.items()}
        urls = {other: url for other, registration in nodes.items() if (url := health_url(registration))}
        return await check_node(name, node.address, health_url(node), addresses, urls, iperf3)

    @routes.get("/redis", tags=["network"])
    async def redis() -> RedisTimes:
        """Return how long a PING, a SET and a GET of Redis take."""
        return await coordinator.redis_times()
