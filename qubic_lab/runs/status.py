"""How the project stands in a week: what people write into the week's file, kept with the week."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something that stood in the way, and what was or will be done about it."""

    problem: str
    solution: str


@dataclass(frozen=True)
class Status:
    """Progress in the form done, in progress and not started; problems with solutions; what comes next."""

    done: tuple[str, ...] = ()
    in_progress: tuple[str, ...] = ()
    not_started: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    next_focus: tuple[str, ...] = ()
