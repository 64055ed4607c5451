"""Votes over samples of one pipeline, which are asked for only until the winner is certified."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qubic_lab.consensus.aggregate import Consensus, VoteContext, VotingConfig, deliberate
from qubic_lab.consensus.certificate import DEFAULT_ERROR, MOST_BALLOTS, Certificate, Certifier
from qubic_lab.consensus.stopping import ballots_to_ask, reason_to_stop
from qubic_lab.consensus.voting import AnswerSource, Ballot, Vote
from qubic_lab.core import MAX_SEED, Request
from qubic_lab.errors import InputError, check_range
from qubic_lab.pipeline.client import Pipeline

RULE = "plurality"


@dataclass(frozen=True)
class SampledVote:
    """A vote of samples: its result, its certificate and its cost.

    `tokens` were generated; `tokens_saved` is the mean of a sample times those that were not asked for.
    """

    result: Consensus
    certificate: Certificate
    tokens: int
    tokens_saved: int


def vote_on_samples(
    pipeline: Pipeline, request: Request, most: int = MOST_BALLOTS, error: float = DEFAULT_ERROR
) -> SampledVote:
    """Ask for up to `most` samples, as few as the certificate takes, and return the vote on them.

    Sample n has the seed of the request plus n, so that no two are copies, and they are those of a vote of `most`. They
    are asked for in waves of the fewest that could end the vote (see `stopping.reason_to_stop`).

    Raises:
        InputError: the temperature is 0, or a number is out of its range.
        QubicLabError: whatever the pipeline raises.
    """
    if request.sampling.temperature == 0:
        raise InputError("temperature is 0: all samples would be copies; give a temperature such as 0.7")
    check_range("samples", most, 1, pipeline.config.slots)
    votes: list[Vote] = []
    ballots: Sequence[Ballot] = ()
    certifier, why = Certifier(error, most=most), None
    while why is None:
        first, count = len(votes), ballots_to_ask(ballots, most - len(votes), certifier)
        sampling = replace(request.sampling, seed=_seed(request, first))
        for number, each in enumerate(pipeline.samples(replace(request, sampling=sampling), count), start=first):
            source = AnswerSource("", request.prompt, replace(request.sampling, seed=_seed(request, number)))
            name, tokens = f"sample {number + 1:02}", len(each.token_ids)
            votes.append(Vote(name, "", "", source, each.text, each.finish_reason, tokens, 0.0))
        result = deliberate(request.prompt, votes, (), VoteContext(), VotingConfig(RULE))
        certifier, ballots = Certifier(error, most=most), sorted(result.ballots, key=lambda each: each.voter)
        for ballot in ballots:
            certifier.add([ballot.group])
        to_come = [Ballot("later", None)] * (most - len(votes))
        why = reason_to_stop(ballots, to_come, rule=RULE, certifier=certifier)
    certificate, tokens = certifier.certificate, sum(vote.new_tokens for vote in votes)
    if certificate.winner != result.decision.winner:
        certificate = replace(certificate, winner=None)
    return SampledVote(result, certificate, tokens, round((most - len(votes)) * tokens / len(votes)))


def _seed(request: Request, number: int) -> int:
    return (request.sampling.seed + number) % (MAX_SEED + 1)
