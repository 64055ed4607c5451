"""Which nodes vote, and how each is asked: plain values in, plain values out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from qubic_lab.cluster.fleet import NodeView
from qubic_lab.consensus.aggregate import VotingConfig
from qubic_lab.consensus.certificate import DEFAULT_ERROR
from qubic_lab.core import MAX_SEED, Request
from qubic_lab.errors import BusyError
from qubic_lab.votes.collect import Voter
from qubic_lab.wire import pipeline_pb2

CERTAIN, CERTIFIED = "certain", "certified"
"""Rules by which a vote may end before all have answered: only if it cannot change, or if its winner is certified."""
EXPERT = "expert"
"""Node type that is asked last, if the others disagree."""
SEED_STRIDE = 1_009
"""Distance between the seeds of two nodes and of two rounds, so that no two samples share a seed."""
BUSY_TASKS_PER_SLOT = 1.0
"""From this many waiting tasks per slot, one node answers instead of a vote (mode `auto`)."""


@dataclass(frozen=True)
class VoteRequest:
    """What a client wants voted on, and how.

    `request` holds the question and the sampling parameters; its seed is the first voter's. Fewer `nodes` than
    requested give more `samples` each. `prompts` (other wordings of the question) and `temperatures` are taken by the
    nodes in turn; empty: the request's. For `stop_at` see `stopping.reason_to_stop`. With the `stop_rule` CERTIFIED the
    vote also ends once its winner is certified; for `stop_error` and `stop_correlation` see `certificate`.
    """

    request: pipeline_pb2.GenerateRequest
    nodes: int
    samples: int
    rounds: int
    deadline_s: float
    voting: VotingConfig
    question_type: str
    prompts: tuple[str, ...] = ()
    temperatures: tuple[float, ...] = ()
    stop_at: float | None = None
    stop_rule: str = CERTAIN
    stop_error: float = DEFAULT_ERROR
    stop_correlation: float = 0.0

    @property
    def question(self) -> str:
        """What the vote is about."""
        return question_of(self.request)

    @property
    def most_ballots(self) -> int:
        """The ballots of all rounds."""
        return self.nodes * self.samples * self.rounds


def question_of(request: Request | pipeline_pb2.GenerateRequest) -> str:
    """Return what is asked: the prompt, or of a chat the last turn of the user, by which answers are read."""
    turns = [each.content for each in request.messages if each.role == "user"]
    return turns[-1] if turns else request.prompt


def is_busy(pending: int, views: Sequence[NodeView]) -> bool:
    """Return whether too many tasks wait to hold an optional vote; False if no node can be asked."""
    slots = sum(view.record.registration.capabilities.slots for view in views if view.gate is None)
    return slots > 0 and pending >= BUSY_TASKS_PER_SLOT * slots


def choose_voters(views: Sequence[NodeView], vote: VoteRequest, before: Mapping[str, int]) -> list[Voter]:
    """Return the voters of a round: the healthiest nodes, different models first; experts are not asked.

    `before` says how many votes each node gave in earlier rounds.

    Raises:
        BusyError: no node can be asked.
    """
    free = sorted(
        (view for view in views if view.gate is None and view.record.registration.type != EXPERT),
        key=lambda view: (-view.score, view.record.id),
    )
    if not free:
        raise BusyError(f"none of {len(views)} nodes can vote now: /api/cluster/nodes says why", 5.0)
    hashes = [view.record.registration.capabilities.model_hash for view in free]
    ranked = sorted(range(len(free)), key=lambda index: (hashes.index(hashes[index]) != index, index))
    chosen = [free[index].record.id for index in ranked[: vote.nodes]]
    samples = ceil(vote.nodes * vote.samples / len(chosen))
    asked = sum(map(bool, before.values()))
    first_seed = vote.request.sampling.seed + SEED_STRIDE * vote.nodes * asked
    prompts, temperatures = vote.prompts or (None,), vote.temperatures or (None,)
    return [
        Voter(
            node,
            samples,
            seed=(first_seed + SEED_STRIDE * number + before.get(node, 0)) % (MAX_SEED + 1),
            before=before.get(node, 0),
            prompt=prompts[(asked + number) % len(prompts)],
            temperature=temperatures[(asked + number) % len(temperatures)],
        )
        for number, node in enumerate(chosen)
    ]
