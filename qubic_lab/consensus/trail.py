"""A reply as plain values for JSON: all that is kept of a vote, and all that a page shows of it."""

from dataclasses import asdict
from typing import Any

import numpy as np

from qubic_lab.consensus.aggregate import Reply, VoterTrail
from qubic_lab.consensus.merging import Addition

DIGITS = 4
"""Of similarities: more of them say nothing."""


def trail_of(reply: Reply) -> dict[str, Any]:
    """Return the whole trail of a reply."""
    alike = reply.similarities
    parts = {
        "embedding": alike.embedding_NN,
        "words": alike.words_NN,
        "structure": alike.structure_NN,
        "edit": alike.edit_NN,
    }
    return {
        "question": reply.question,
        "text": reply.text,
        "how": reply.how,
        "level": str(reply.level),
        "confidence": asdict(reply.confidence),
        "conflict": reply.conflict,
        "disagreement": reply.disagreement,
        "decision": asdict(reply.decision),
        "groups": [list(voters) for voters in reply.groups],
        "voters": [_voter(each) for each in reply.voters],
        "absences": [asdict(each) for each in reply.absences],
        "similarity": _rows(alike.values_NN),
        "similarity_parts": {name: _rows(values) for name, values in parts.items()},
        "bonds": [[str(bond) for bond in row] for row in reply.bonds],
        "effective_votes": reply.effective_votes,
        "rho": reply.rho,
        "notes": list(reply.notes),
        "additions": [_addition(reply, each) for each in reply.additions],
        "disputed": [_addition(reply, each) for each in reply.disputed],
    }


def _addition(reply: Reply, addition: Addition) -> dict[str, Any]:
    def names(indices: tuple[int, ...]) -> list[str]:
        return [reply.voters[index].vote.voter for index in indices]

    return {
        "sentence": addition.sentence,
        "said_by": names(addition.said_by),
        "denied_by": names(addition.denied_by),
    }


def _voter(trail: VoterTrail) -> dict[str, Any]:
    vote, sampling = trail.vote, trail.vote.source.sampling
    return {
        "voter": vote.voter,
        "node": vote.node,
        "model": vote.model,
        "model_hash": vote.source.model_hash,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "text": vote.text,
        "finish_reason": vote.finish_reason,
        "new_tokens": vote.new_tokens,
        "seconds": vote.seconds,
        "mean_logprob": vote.mean_logprob,
        "final": {"kind": trail.final.kind, "value": trail.final.value, "text": trail.final.text},
        "quality": {"value": trail.quality.value, **asdict(trail.quality)},
        "weight": trail.weight.to_dict(),
        "group": trail.group,
        "dropped": trail.dropped,
    }


def _rows(matrix_NN: "np.ndarray[Any, np.dtype[np.float64]]") -> list[list[float | None]]:
    return [[None if np.isnan(value) else round(float(value), DIGITS) for value in row] for row in matrix_NN]
