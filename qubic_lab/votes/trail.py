"""The trail of a vote as plain values for JSON: what the history keeps and the vote's page shows."""

import math
from dataclasses import asdict
from statistics import fmean
from typing import Any

import numpy as np

from qubic_lab.consensus.aggregate import Consensus, VoterTrail

SIMILARITY_DIGITS = 4
SHOWN_CHARACTERS = 200


def trail_of(result: Consensus) -> dict[str, Any]:
    """Return the whole trail of a vote."""
    alike = result.similarities
    parts = {
        "embedding": alike.embedding_NN,
        "words": alike.words_NN,
        "structure": alike.structure_NN,
        "edit": alike.edit_NN,
    }
    return {
        "question": result.question,
        "text": result.text,
        "how": result.how,
        "level": str(result.level),
        "confidence": asdict(result.confidence),
        "conflict": result.conflict,
        "disagreement": result.disagreement,
        "decision": asdict(result.decision),
        "nodes": node_confidences(result),
        "groups": [list(names) for names in result.groups],
        "voters": [_voter(each) for each in result.voters],
        "absences": [asdict(each) for each in result.absences],
        "similarity": _rows(alike.values_NN),
        "similarity_parts": {name: _rows(values) for name, values in parts.items()},
        "bonds": [[str(bond) for bond in row] for row in result.bonds],
        "effective_votes": result.effective_votes,
        "rho": result.rho,
        "notes": list(result.notes),
        "additions": [asdict(each) for each in result.additions],
        "disputed": [asdict(each) for each in result.disputed],
    }


def standings_of(result: Consensus) -> list[dict[str, Any]]:
    """Return who is for each answer, the leader first, with the answer of its first voter."""
    answers = {each.vote.voter: " ".join((each.final.text or each.vote.text).split()) for each in result.voters}
    return [
        {"answer": answers[each.voters[0]][:SHOWN_CHARACTERS], "voters": list(each.voters), "share": each.ballot_share}
        for each in result.decision.standings
    ]


def round_of(number: int, result: Consensus) -> dict[str, Any]:
    """Return what was known after a round: the level, the confidence of the vote and that of each node."""
    known = {"round": number, "level": str(result.level), "confidence": result.confidence.probability}
    return known | {"standings": standings_of(result), "nodes": node_confidences(result)}


def node_confidences(result: Consensus) -> list[dict[str, Any]]:
    """Return the confidence of each node in its own answers, beside how often it was right before.

    `confidence` is the geometric mean probability of its tokens, which is not calibrated; None if it is unknown.
    `for_leader` are its answers in the leading group, `accuracy` is that of its graded answers (1/2 without any).
    """
    leading = result.decision.standings[0].voters if result.decision.standings else ()
    found = []
    for node in sorted({each.vote.node for each in result.voters}):
        given = [each for each in result.voters if each.vote.node == node]
        logprobs = [each.vote.mean_logprob for each in given if each.vote.mean_logprob is not None]
        counts = {"answers": len(given), "for_leader": sum(each.vote.voter in leading for each in given)}
        own = math.exp(fmean(logprobs)) if logprobs else None
        found.append({"node": node, **counts, "confidence": own, "accuracy": given[0].weight.accuracy})
    return found


def _voter(trail: VoterTrail) -> dict[str, Any]:
    vote, sampling = trail.vote, trail.vote.source.sampling
    return {
        **{name: value for name, value in vars(vote).items() if name != "source"},
        "model_hash": vote.source.model_hash,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "final": {"kind": trail.final.kind, "value": trail.final.value, "text": trail.final.text},
        "quality": {"value": trail.quality.value, **asdict(trail.quality)},
        "weight": {"weight": trail.weight.weight, **asdict(trail.weight)},
        "group": trail.group,
        "dropped": trail.dropped,
    }


def _rows(matrix_NN: "np.ndarray[Any, np.dtype[np.float64]]") -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(float(value), SIMILARITY_DIGITS) for value in row] for row in matrix_NN]
