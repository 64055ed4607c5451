"""The certificate of a vote: which of its ballots count for it, and in which order."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from qubic_lab.consensus.aggregate import Consensus
from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.consensus.certificate import Certificate, Certifier
from qubic_lab.consensus.voting import AbsenceReason
from qubic_lab.votes.voters import VoteRequest


def certify(result: Consensus, asked: Sequence[Sequence[str]], vote: VoteRequest) -> Certifier:
    """Return what the ballots show; `asked` has the voters' names in the order asked, in rows of one for each node.

    If all ballots are of one source (model, prompt, sampling parameters but the seed), they count one by one up to the
    first that is missing, whatever has arrived after it: which answers come first may depend on what they say. If there
    are several sources, whole rows count, those with the sources of the first. Copies and failed voters do not count.
    """
    groups = {ballot.voter: ballot.group for ballot in result.ballots}
    votes = [each.vote for each in result.voters]
    sources = {each.voter: replace(each.source, sampling=replace(each.source.sampling, seed=0)) for each in votes}
    known = sources.keys() | {each.voter for each in result.absences if each.why is AbsenceReason.FAILED}
    several = len(set(sources.values())) > 1
    certifier, first = Certifier(vote.stop_error, vote.stop_correlation, vote.most_ballots), None
    blocks = asked if several else [(name,) for row in asked for name in row]
    for block in blocks:
        if not known >= set(block):
            break
        cast = [name for name in block if name in sources and name in groups]
        mix = Counter(sources[name] for name in cast)
        if len(cast) == len(block) and mix == (first or mix):
            certifier.add([groups[name] for name in cast])
            first = mix if several else None
    return certifier


def certificate_of(result: Consensus, asked: Sequence[Sequence[str]], vote: VoteRequest) -> Certificate:
    """Return the certificate of a vote's answer; a reply that is not that of the winning group has none."""
    found = certify(result, asked, vote).certificate
    is_told = result.level in (ConfidenceLevel.ANSWER, ConfidenceLevel.NOTE)
    return found if is_told and found.winner == result.decision.winner else replace(found, winner=None)
