"""The trail of a vote as plain values for JSON: what the history keeps and the vote's page shows."""

from dataclasses import asdict
from typing import Any

import numpy as np

from qubic_lab.consensus.aggregate import Consensus, VoterTrail

SIMILARITY_DIGITS = 4


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
