"""The page of a vote: the reply, the voters, their similarity and the decision."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

SIDE = 22
"""Pixels of a cell of the similarity matrix."""
CHARACTER = 7
SHOWN_CHARACTERS = 600


def render_vote(id: str, trail: Mapping[str, Any]) -> str:
    """Return the HTML page of a vote's trail (see `votes.trail`)."""
    return _render("vote.html", id=id, trail=trail, picture=_picture(trail), shown=SHOWN_CHARACTERS)


def render_live(id: str, question: str) -> str:
    """Return the HTML page that follows a vote while it is held; it loads itself again when the vote has ended."""
    return _render("live.html", id=id, question=question)


def _render(template: str, **content: Any) -> str:
    return _environment().get_template(template).render(**content)


@cache
def _environment() -> Environment:
    return Environment(loader=PackageLoader("qubic_lab.api"), autoescape=True, undefined=StrictUndefined)


def _picture(trail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the similarity matrix as shapes, with the voters of a group side by side."""
    voters = trail["voters"]
    order = sorted(range(len(voters)), key=lambda i: (voters[i]["group"] is None, voters[i]["group"] or 0, i))
    label = CHARACTER * max((len(each["voter"]) for each in voters), default=0) + 8
    place = {index: position for position, index in enumerate(order)}
    cells = [
        {
            "x": label + SIDE * place[column],
            "y": SIDE * place[row],
            "value": trail["similarity"][row][column] or 0,
            "title": _title(trail, row, column),
        }
        for row in order
        for column in order
    ]
    return {
        "side": SIDE,
        "width": label + SIDE * len(order) + 2,
        "height": SIDE * len(order) + 2,
        "label_x": label - 4,
        "names": [{"text": voters[i]["voter"], "y": SIDE * place[i] + 15} for i in order],
        "cells": cells,
        "frames": _frames([voters[i]["group"] for i in order], label),
    }


def _frames(groups: list[int | None], label: int) -> list[dict[str, int]]:
    """Return a square around the cells of each group."""
    frames = []
    for group in dict.fromkeys(each for each in groups if each is not None):
        first, count = groups.index(group), groups.count(group)
        frames.append({"start": label + SIDE * first, "top": SIDE * first, "size": SIDE * count})
    return frames


def _title(trail: Mapping[str, Any], row: int, column: int) -> str:
    first, second = (trail["voters"][index]["voter"] for index in (row, column))
    parts = []
    for name, matrix in trail["similarity_parts"].items():
        value = matrix[row][column]
        parts.append(f"{name} {'not counted' if value is None else f'{value:.2f}'}")
    value, bond = trail["similarity"][row][column], trail["bonds"][row][column]
    return f"{first} and {second}: {value:.2f} ({', '.join(parts)}); {bond}"
