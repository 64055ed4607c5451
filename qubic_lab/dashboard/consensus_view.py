"""What the consensus tab shows, from the coordinator's answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from qubic_lab.consensus.bands import ConfidenceLevel
from qubic_lab.runs.language import translated_text

SHOWN_CHARACTERS = 400
COLORS = {"right": "#2a9d8f", "wrong": "#d1495b", "conflict": "#e07a3f", "not graded": "#7b8a95"}
"""Of the outcomes of a vote."""


@dataclass(frozen=True)
class Standing:
    """An answer in a vote, who is for it, and its share of the ballots."""

    answer: str
    voters: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Voice:
    """What a voter said, and what was read of it; `why_not`: why it does not count, empty if it does."""

    voter: str
    node: str
    text: str
    read: str
    for_winner: bool
    why_not: str


@dataclass(frozen=True)
class VoteView:
    """A vote: its standings, the leader first, and what each voter said; `missing` are still to come."""

    question: str
    standings: tuple[Standing, ...]
    voices: tuple[Voice, ...] = ()
    answered: int = 0
    missing: int = 0
    level: str = ""
    confidence: float | None = None
    note: str = ""
    why: str = ""
    conflict: bool = False


@dataclass(frozen=True)
class Band:
    """The votes of a level of confidence, and their share of all."""

    level: str
    votes: int
    share: float


def vote_view(trail: Mapping[str, Any]) -> VoteView:
    """Return a vote that was held, from its trail."""
    decision, winner = trail["decision"], trail["decision"]["winner"]
    texts = {each["voter"]: each["final"]["text"] or each["text"] for each in trail["voters"]}
    standings = tuple(
        Standing(_short(texts[each["voters"][0]]), tuple(each["voters"]), each["ballot_share"])
        for each in decision["standings"]
    )
    voices = tuple(
        Voice(
            voter=each["voter"],
            node=each["node"],
            text=_short(each["text"]),
            read=_short(each["final"]["text"]),
            for_winner=each["group"] is not None and each["group"] == winner,
            why_not=each["dropped"],
        )
        for each in trail["voters"]
    )
    absent = tuple(
        Voice(each["voter"], "", "", "", False, f"{each['why']}: {each['detail']}") for each in trail["absences"]
    )
    confidence = trail["confidence"]
    return VoteView(
        question=trail["question"],
        standings=standings,
        voices=voices + absent,
        answered=len(voices),
        level=trail["level"],
        confidence=confidence["probability"],
        note=confidence["note"],
        why="; ".join(dict.fromkeys(decision["why"].split("; "))),  # two rules may have failed alike
        conflict=trail["conflict"],
    )


def live_view(question: str, events: Sequence[tuple[str, Mapping[str, Any]]]) -> VoteView:
    """Return a vote that is being held, from its events so far."""
    counts = [data for name, data in events if name == "count"]
    rounds = [data for name, data in events if name == "round"]
    last: Mapping[str, Any] = counts[-1] if counts else {"standings": [], "answered": 0, "missing": 0}
    standings = tuple(
        Standing(_short(each["answer"]), tuple(each["voters"]), each["share"]) for each in last["standings"]
    )
    level, confidence = (rounds[-1]["level"], rounds[-1]["confidence"]) if rounds else ("", None)
    return VoteView(question, standings, (), last["answered"], last["missing"], level, confidence)


def bands(votes: Sequence[Mapping[str, Any]]) -> list[Band]:
    """Return how many of the votes of a page of the history have each level, the surest first."""
    levels = [str(level) for level in ConfidenceLevel]
    levels += sorted({each["level"] for each in votes} - {*levels})
    counts = [sum(each["level"] == level for each in votes) for level in levels]
    return [
        Band(level, count, count / len(votes) if votes else 0.0) for level, count in zip(levels, counts, strict=True)
    ]


def confidence_columns(votes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the votes of a page of the history that have a confidence, as columns of a chart."""
    shown = [each for each in votes if each["confidence"] is not None]
    outcomes = [_outcome(each) for each in shown]
    return {
        "at": [datetime.fromisoformat(each["created_utc"]).timestamp() * 1e3 for each in shown],
        "confidence": [each["confidence"] for each in shown],
        "outcome": [translated_text(outcome) for outcome in outcomes],
        "color": [COLORS[outcome] for outcome in outcomes],
        "question": [_short(each["question"]) for each in shown],
        "level": [each["level"] for each in shown],
    }


def _outcome(vote: Mapping[str, Any]) -> str:
    """Return whether a vote was right, if it was graded; else whether the voters agreed."""
    right = vote.get("right")
    if right is not None:
        return "right" if right else "wrong"
    return "conflict" if vote["conflict"] else "not graded"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
