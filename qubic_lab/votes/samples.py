"""Votes over samples of one pipeline, which are asked for only until the winner is certified."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.certificate import MOST_BALLOTS, Certificate, Certifier
from qubic_lab.consensus.stopping import ballots_to_ask, reason_to_stop
from qubic_lab.consensus.voting import AnswerSource, Ballot, Vote
from qubic_lab.core import MAX_SEED, Completion, Request
from qubic_lab.errors import InputError, check_range
from qubic_lab.pipeline.client import Pipeline
from qubic_lab.votes.counting import Counting
from qubic_lab.votes.voters import question_of

RULE = "plurality"
AskSamples = Callable[[Request, int], Awaitable[Sequence[Completion]]]
"""Answers a request so many times, with the seeds `seed`, `seed + 1`, …"""


@dataclass(frozen=True)
class SampledVote:
    """A vote of samples: its result, its certificate and its cost.

    `tokens` were generated; `tokens_saved` is the mean of a sample times those that were not asked for.
    """

    result: Consensus
    certificate: Certificate
    tokens: int
    tokens_saved: int


def vote_on_samples(pipeline: Pipeline, request: Request, most: int = MOST_BALLOTS) -> SampledVote:
    """Ask for up to `most` samples, as few as the certificate takes, and return the vote on them.

    Sample n has the seed of the request plus n, so that no two are copies, and they are those of a vote of `most`. They
    are asked for in waves of the fewest that could end the vote (see `stopping.reason_to_stop`).

    Raises:
        InputError: the temperature is 0, or a number is out of its range.
        QubicLabError: whatever the pipeline raises.
    """
    vote = _SampleVote(request, check_range("samples", most, 1, pipeline.config.slots))
    while count := vote.to_ask():
        vote.add(pipeline.samples(vote.next_request, count))
        vote.judge(deliberate(vote.question, vote.votes, (), VoteContext(), VotingConfig(RULE)))
    return vote.end()


async def hold_sampled_vote(ask: AskSamples, counting: Counting, request: Request, most: int) -> SampledVote:
    """Hold the same vote for a server: what answers say is read in a worker process.

    Raises:
        InputError: the temperature is 0.
        QubicLabError: whatever `ask` raises, or as `Counting.deliberate`.
    """
    vote = _SampleVote(request, most)
    while count := vote.to_ask():
        vote.add(await ask(vote.next_request, count))
        vote.judge(await counting.deliberate(vote.question, vote.votes, (), VoteContext(), VotingConfig(RULE)))
    return vote.end()


class _SampleVote:
    """A vote while it is held: says how many samples to ask for, takes them, and then what they add up to."""

    def __init__(self, request: Request, most: int) -> None:
        if request.sampling.temperature == 0:
            raise InputError("temperature is 0: all samples would be copies; give a temperature such as 0.7")
        self.question = question_of(request)
        self.votes: list[Vote] = []
        self._request, self._most = request, most
        self._ballots: Sequence[Ballot] = ()
        self._certifier = Certifier(most=most)
        self._result: Consensus | None = None
        self._why: str | None = None

    @property
    def next_request(self) -> Request:
        """The request for the samples that come next."""
        return replace(self._request, sampling=replace(self._request.sampling, seed=self._seed(len(self.votes))))

    def to_ask(self) -> int:
        """Return how many samples to ask for next; 0: the vote has fallen."""
        return 0 if self._why else ballots_to_ask(self._ballots, self._most - len(self.votes), self._certifier)

    def add(self, samples: Sequence[Completion]) -> None:
        """Take the samples that were asked for."""
        for number, each in enumerate(samples, start=len(self.votes)):
            sampling = replace(self._request.sampling, seed=self._seed(number))
            source, name = AnswerSource("", self.question, sampling), f"sample {number + 1:02}"
            counts = {"new_tokens": len(each.token_ids), "prompt_tokens": each.prompt_tokens}
            self.votes.append(Vote(name, "", "", source, each.text, each.finish_reason, seconds=0.0, **counts))

    def judge(self, result: Consensus) -> None:
        """Take the result of all samples so far, and decide whether the vote goes on."""
        certifier = Certifier(most=self._most)
        self._ballots = sorted(result.ballots, key=lambda each: each.voter)
        for ballot in self._ballots:
            certifier.add([ballot.group])
        to_come = [Ballot("later", None)] * (self._most - len(self.votes))
        self._result, self._certifier = result, certifier
        self._why = reason_to_stop(self._ballots, to_come, rule=RULE, certifier=certifier)

    def end(self) -> SampledVote:
        """Return the vote, which has fallen."""
        assert self._result is not None
        certificate, tokens = self._certifier.certificate, sum(vote.new_tokens for vote in self.votes)
        if certificate.winner != self._result.decision.winner:
            certificate = replace(certificate, winner=None)
        saved = round((self._most - len(self.votes)) * tokens / len(self.votes))
        return SampledVote(self._result, certificate, tokens, saved)

    def _seed(self, number: int) -> int:
        return (self._request.sampling.seed + number) % (MAX_SEED + 1)
