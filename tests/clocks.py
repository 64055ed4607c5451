"""A clock for tests."""

from dataclasses import dataclass


@dataclass
class StandingClock:
    """A clock that stands until it is moved, in microseconds."""

    us: int

    def __call__(self) -> int:
        return self.us
