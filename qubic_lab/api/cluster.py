"""Routes that tell of the cluster: `/api/cluster/…`."""

from collections import Counter
from dataclasses import asdict

from fastapi import APIRouter

from qubic_lab import __version__
from qubic_lab.api.schemas import ClusterStatus, DeadTask, NodeStatus, Tasks, TaskState
from qubic_lab.cluster.coordinator import Coordinator

MOST_DEAD = 100


def make_routes(coordinator: Coordinator) -> APIRouter:
    """Return the routes of a coordinator."""
    routes = APIRouter(prefix="/api/cluster", tags=["cluster"])

    @routes.get("/status")
    async def status() -> ClusterStatus:
        """Tell how the cluster is."""
        gates = Counter(str(view.gate or "open") for view in coordinator.nodes())
        return ClusterStatus(
            coordinator=coordinator.name,
            version=__version__,
            ready=gates["open"] > 0,
            nodes=dict(gates),
            working=coordinator.working,
            tasks=Tasks(**asdict(await coordinator.counts())),
        )

    @routes.get("/nodes")
    async def nodes() -> list[NodeStatus]:
        """Tell of each node what it can do, how it is, and why it gets nothing if that is so."""
        return [NodeStatus.of(view) for view in coordinator.nodes()]

    @routes.post("/nodes/{name:path}/drain", status_code=204)
    async def drain(name: str) -> None:
        """Let a node end what it has and get nothing new."""
        await coordinator.drain(name, True)

    @routes.delete("/nodes/{name:path}/drain", status_code=204)
    async def end_drain(name: str) -> None:
        """Let a node get tasks again."""
        await coordinator.drain(name, False)

    @routes.get("/tasks")
    async def tasks() -> Tasks:
        """Tell how many tasks are where, and which had their last try."""
        letters = (await coordinator.dead_letters())[-MOST_DEAD:]
        dead = [DeadTask(task_id=letter.task_id, story=list(letter.story)) for letter in letters]
        return Tasks(**asdict(await coordinator.counts()), dead_letters=dead)

    @routes.get("/tasks/{task_id}")
    async def task(task_id: str) -> TaskState:
        """Tell where a task is, and how it ended."""
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

    @routes.delete("/tasks/{task_id}")
    async def cancel(task_id: str) -> TaskState:
        """End a task that has not ended yet."""
        await coordinator.cancel(task_id)
        return await task(task_id)

    return routes
