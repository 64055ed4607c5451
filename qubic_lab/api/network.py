"""Routes that measure the cluster's network: `/api/cluster/nodes/NAME/links` and `/api/cluster/redis`."""

from dataclasses import asdict

from fastapi import APIRouter

from qubic_lab.api.schemas import NodeLink, NodeLinkReport, RedisTimes
from qubic_lab.cluster.coordinator import Coordinator
from qubic_lab.cluster.links import check_node
from qubic_lab.errors import NotFoundError, did_you_mean


def make_routes(coordinator: Coordinator) -> APIRouter:
    """Return the routes of a coordinator."""
    routes = APIRouter(prefix="/api/cluster", tags=["network"])

    @routes.get("/nodes/{name:path}/links")
    async def links(name: str) -> NodeLinkReport:
        """Let a node measure the ways to all others; takes about a second for each."""
        addresses = {view.record.id: view.record.registration.address for view in coordinator.nodes()}
        if name not in addresses:
            raise NotFoundError(f"no node {name!r} is registered: {did_you_mean(name, addresses)}")
        found = await check_node(name, addresses.pop(name), addresses)
        ways = [
            NodeLink(to=each.node, rtt_ms=each.rtt_ms, gbps=each.gbps, trouble=each.trouble) for each in found.links
        ]
        return NodeLinkReport(
            node=name, serving=found.serving, health_ms=found.health_ms, trouble=found.trouble, links=ways
        )

    @routes.get("/redis")
    async def redis() -> RedisTimes:
        """Tell how long a PING, a SET and a GET of Redis take."""
        return RedisTimes(**asdict(await coordinator.redis_times()))

    return routes
